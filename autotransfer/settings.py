"""Where autotransfer keeps things, from `AUTOTRANSFER_*` environment variables."""

from functools import cache
from pathlib import Path

from pydantic import ByteSize, Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from autotransfer.errors import SettingsError


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
    cache_limit: ByteSize = Field(
        default=ByteSize(20 * 10**9),
        description="what the cache folder may take; the least recently used files go first",
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
    """The settings of this process, read once.

    Raises:
        SettingsError: an environment variable has a value that is not allowed.
    """
    try:
        return Settings()
    except ValidationError as error:
        problems = "; ".join(
            f"{Settings.model_config.get('env_prefix')}{problem['loc'][0]}".upper()
            + f" is {problem['input']!r}: {problem['msg']}"
            for problem in error.errors()
        )
        raise SettingsError(f"{problems}. Change the environment variable, or unset it.") from error
