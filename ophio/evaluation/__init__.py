"""Samples judged from outside: self-consistency, controls, diversity and novelty, and the report of them."""
