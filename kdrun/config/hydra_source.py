"""Hydra config source for models and recipes: `kdrun://FOLDER`, and kdrun's own conf/ as `kdrun://models`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra._internal.sources_registry import SourcesRegistry  # private to Hydra 1.3, which pyproject.toml pins
from hydra.plugins.config_source import ConfigResult, ConfigSource
from omegaconf import DictConfig, OmegaConf

from kdrun.config.groups import MODEL_GROUPS, conf_dir, group_file


class GroupSource(ConfigSource):
    """Config source that offers each model in both model groups, recipes for every pair, and any name with a colon
    as a model, so that `teacher=timm:NAME` works on the command line, in multirun lists and in overlays."""

    @staticmethod
    def scheme() -> str:
        return "kdrun"

    @property
    def root(self) -> Path:
        return conf_dir() if self.path == "models" else Path(self.path)

    def available(self) -> bool:
        return True

    def is_group(self, config_path: str) -> bool:
        return config_path in (*MODEL_GROUPS, "recipe")

    def is_config(self, config_path: str) -> bool:
        group, name = self.split(config_path)
        if group in MODEL_GROUPS and ":" in name:
            return True
        return self.is_group(group) and group_file(group, name, self.root) is not None

    def list(self, config_path: str, results_filter: Any) -> list[str]:
        return sorted(path.stem for path in (self.root / "model").glob("*.yaml")) if config_path in MODEL_GROUPS else []

    def load_config(self, config_path: str) -> ConfigResult:
        group, name = self.split(config_path)
        path = group_file(group, name, self.root)
        if path is None:
            return ConfigResult("kdrun", self.full_path(), OmegaConf.create({"name": name}), {"package": None})
        config = OmegaConf.load(path)
        if group == "recipe" and isinstance(config, DictConfig):
            config.pop("pairs", None)
        header = self._get_header_dict(path.read_text())
        return ConfigResult("kdrun", self.full_path(), config, {"package": header.get("package")})

    @staticmethod
    def split(config_path: str) -> tuple[str, str]:
        group, _, name = config_path.partition("/")
        return group, name.removesuffix(".yaml")


def register_source() -> None:
    """Register the source with Hydra. Harmless when repeated."""
    SourcesRegistry.instance().register(GroupSource)
