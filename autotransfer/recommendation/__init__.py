"""The answer: which model, why, how sure, and what it cost."""

from autotransfer.recommendation.pipeline import recommend
from autotransfer.recommendation.recommendation import Recommendation, Score

__all__ = ["Recommendation", "Score", "recommend"]
