"""The answer: which model, why, how sure, and what it cost."""
