"""Receipts: what an answer was made of, and the proof that it is what the model gives. docs/receipts.md says more."""

from llorch.receipts.record import Malformed, dumps, loads, make, statement
from llorch.receipts.verify import Verdict, verify

__all__ = ["Malformed", "Verdict", "dumps", "loads", "make", "statement", "verify"]
