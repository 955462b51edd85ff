"""Where autotransfer keeps things, from `AUTOTRANSFER_*` environment variables."""

from functools import cache
from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """What holds for every command on this machine; options on the command line win over these."""

    model_config = SettingsConfigDict(env_prefix="AUTOTRANSFER_", extra="ignore")

    home: Path = Field(
        default_factory=lambda: Path.home() / ".autotransfer",
        description="studies (Optuna journals), the default MLflow store and its artifacts",
    )
    cache_dir: Path = Field(
        default_factory=lambda: Path.home() / ".cache" / "autotransfer",
        description="decoded images and probe features: safe to delete at any time",
    )
    tracking_uri: str | None = Field(default=None, description="MLflow store used when --tracking-uri is not given")
    storage: str | None = Field(default=None, description="Optuna storage used when --storage is not given")
    experiment: str = Field(default="autotransfer", description="MLflow experiment that holds the studies")

    @property
    def studies_dir(self) -> Path:
        """One Optuna journal file per study."""
        return self.home / "studies"

    def default_tracking_uri(self) -> str:
        """The local SQLite store, made on first use."""
        return self.tracking_uri or f"sqlite:///{(self.home / 'mlflow.db').resolve()}"


@cache
def settings() -> Settings:
    """The settings of this process, read once."""
    return Settings()
