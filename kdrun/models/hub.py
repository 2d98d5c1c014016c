"""Published weights: the caches of timm and torchvision, and whether a network connection is available to download
more. No torch here."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from kdrun.errors import ConfigError, one_line

TIMEOUT = 3.0  # seconds for one connection: a download that works answers in a fraction of one


@dataclass(frozen=True)
class Weights:
    """Source of a network's published weights: a repository on the Hugging Face hub, or a URL that torch.hub
    downloads. files: names in the repository, of which the first that exists counts."""

    repo: str = ""
    files: tuple[str, ...] = ()
    url: str = ""

    @property
    def place(self) -> Path:
        """Return the local path of the weights, whether or not they are there."""
        return hub_cache() / f"models--{self.repo.replace('/', '--')}" if self.repo else hub_folder() / self.file_name

    @property
    def file_name(self) -> str:
        return urlsplit(self.url).path.rpartition("/")[2]

    @property
    def setting(self) -> str:
        """Return the environment variables that change `place`."""
        return "HF_HOME or HF_HUB_CACHE" if self.repo else "TORCH_HOME"

    @property
    def download(self) -> str:
        """Return the address to open in a browser."""
        return f"{endpoint()}/{self.repo}/resolve/main/{self.files[0]}" if self.repo else self.url

    @property
    def server(self) -> str:
        return endpoint() if self.repo else self.url


def timm_weights(cfg: Any) -> Weights | None:
    """Return timm's source of the weights of a pretrained configuration; None if it has none."""
    if cfg is None or not (cfg.hf_hub_id or cfg.url):
        return None
    if not cfg.hf_hub_id:
        return Weights(url=cfg.url)
    files = (cfg.hf_hub_filename,) if cfg.hf_hub_filename else ("model.safetensors", "pytorch_model.bin")
    return Weights(repo=cfg.hf_hub_id.partition("@")[0], files=files)


def hub_folder() -> Path:
    """Return torch.hub's folder of checkpoints by torch.hub's own rule, without importing torch, so that error
    messages appear at once."""
    home = os.environ.get("TORCH_HOME") or os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "torch")
    return Path(os.path.expanduser(home)) / "hub" / "checkpoints"


def hub_cache() -> Path:
    """Return Hugging Face's folder of repositories."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def cached_names() -> tuple[list[str], list[str]]:
    """Return the repositories in Hugging Face's cache that contain files, and the files in torch.hub's folder."""
    repositories = [
        folder.name.removeprefix("models--").replace("--", "/")
        for folder in sorted(hub_cache().glob("models--*"))
        if any(folder.glob("snapshots/*/*"))
    ]
    return repositories, sorted(path.name for path in hub_folder().glob("*.p*th*") if path.is_file())


def endpoint() -> str:
    """Return the address of the Hugging Face hub, or of the mirror set by HF_ENDPOINT."""
    from huggingface_hub import constants

    return constants.ENDPOINT


def is_cached(weights: Weights) -> bool:
    """Return True if the weights are on this machine."""
    if not weights.repo:
        return weights.place.is_file()
    from huggingface_hub import try_to_load_from_cache

    return any(isinstance(try_to_load_from_cache(weights.repo, file), str) for file in weights.files)


@contextmanager
def reached(name: str, weights: Weights | None, role: str) -> Iterator[None]:
    """Provide a network's published weights to the code in this block: from this machine without any connection, else
    by download.

    Raises ConfigError (one line) if neither works, after one attempt to connect.
    """
    if weights is None:
        raise ConfigError(f"{name} has no published weights: set {role}.pretrained=FILE or {role}.pretrained=false.")
    cached = is_cached(weights)
    reason = "" if cached else no_route(weights)
    if reason:
        raise ConfigError(not_here(name, weights, role, reason))
    try:
        with offline(cached):
            yield
    except (OSError, RuntimeError) as error:
        if cached:
            raise ConfigError(
                f"{name}: its weights in {weights.place} cannot be loaded ({one_line(error)}); delete them to "
                "download them again."
            ) from error
        raise ConfigError(not_here(name, weights, role, one_line(error))) from error


def not_here(name: str, weights: Weights, role: str, reason: str) -> str:
    """Return the error line for weights that could not be downloaded: where they are expected, and the manual way."""
    return (
        f"{name}: its pretrained weights are not in {weights.place} ({weights.setting} changes this) and could not be "
        f"downloaded ({reason}). Download {weights.download} on a machine with a network connection and set "
        f"{role}.pretrained=FILE, or train from scratch with {role}.pretrained=false."
    )


@contextmanager
def offline(wanted: bool) -> Iterator[None]:
    """Keep Hugging Face's client offline in this block if `wanted`."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or wanted
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def no_route(weights: Weights) -> str:
    """Return why weights cannot be downloaded; an empty string if their server, or the proxy in front of it,
    answers."""
    from huggingface_hub import constants

    if weights.repo and constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE forbids it"
    server = urlsplit(weights.server)
    if server.scheme == "file" or not server.hostname:
        return ""
    proxy = getproxies().get(server.scheme) or getproxies().get("all")
    if proxy and not proxy_bypass(server.hostname):
        through = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
        problem = connection_problem(through.hostname or "", through.port or 80)
        return f"the proxy {through.hostname}: {problem}" if problem else ""
    problem = connection_problem(server.hostname, server.port or (80 if server.scheme == "http" else 443))
    return f"{server.hostname}: {problem}" if problem else ""


def connection_problem(host: str, port: int) -> str:
    """Return why a server cannot be reached; an empty string if it can. Runs in a thread of its own, because name
    resolution has no timeout."""
    outcome = [f"no answer in {TIMEOUT:.0f} s"]

    def attempt() -> None:
        try:
            socket.create_connection((host, port), timeout=TIMEOUT).close()
            outcome[0] = ""
        except TimeoutError:
            pass
        except OSError as error:
            outcome[0] = error.strerror or one_line(error)

    waiting = threading.Thread(target=attempt, daemon=True)
    waiting.start()
    waiting.join(TIMEOUT + 0.5)
    return outcome[0]
