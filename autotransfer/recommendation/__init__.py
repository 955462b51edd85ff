"""The answer: which model, why, how sure, and what it cost."""

from autotransfer.recommendation.pipeline import recommend
from autotransfer.recommendation.recommendation import Recommendation, Score
from autotransfer.transfer.model import load_model as load

__all__ = ["Recommendation", "Score", "load", "recommend"]
