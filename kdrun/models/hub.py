"""Published weights: where timm and torchvision keep what they downloaded, and whether there is a network to download
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
    """Where a network's published weights come from: a repository of Hugging Face's hub, or a URL that torch.hub
    downloads. files: of the repository, the first that is there."""

    repo: str = ""
    files: tuple[str, ...] = ()
    url: str = ""

    @property
    def place(self) -> Path:
        """Where they are, or would be, on this machine."""
        return hub_cache() / f"models--{self.repo.replace('/', '--')}" if self.repo else hub_folder() / self.file_name

    @property
    def file_name(self) -> str:
        return urlsplit(self.url).path.rpartition("/")[2]

    @property
    def setting(self) -> str:
        """The environment variables that move `place`."""
        return "HF_HOME or HF_HUB_CACHE" if self.repo else "TORCH_HOME"

    @property
    def download(self) -> str:
        """What to open in a browser."""
        return f"{endpoint()}/{self.repo}/resolve/main/{self.files[0]}" if self.repo else self.url

    @property
    def server(self) -> str:
        return endpoint() if self.repo else self.url


def timm_weights(cfg: Any) -> Weights | None:
    """Where timm takes the weights of a pretrained configuration from; None where it has none."""
    if cfg is None or not (cfg.hf_hub_id or cfg.url):
        return None
    if not cfg.hf_hub_id:
        return Weights(url=cfg.url)
    files = (cfg.hf_hub_filename,) if cfg.hf_hub_filename else ("model.safetensors", "pytorch_model.bin")
    return Weights(repo=cfg.hf_hub_id.partition("@")[0], files=files)


def hub_folder() -> Path:
    """torch.hub's folder of checkpoints by torch.hub's own rule, without importing torch: a mistake answers at once."""
    home = os.environ.get("TORCH_HOME") or os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "torch")
    return Path(os.path.expanduser(home)) / "hub" / "checkpoints"


def hub_cache() -> Path:
    """Hugging Face's folder of repositories."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def cached_names() -> tuple[list[str], list[str]]:
    """The repositories of Hugging Face's cache that hold files, and the files in torch.hub's folder."""
    repositories = [
        folder.name.removeprefix("models--").replace("--", "/")
        for folder in sorted(hub_cache().glob("models--*"))
        if any(folder.glob("snapshots/*/*"))
    ]
    return repositories, sorted(path.name for path in hub_folder().glob("*.p*th*") if path.is_file())


def endpoint() -> str:
    """Hugging Face's hub, or the mirror that HF_ENDPOINT names."""
    from huggingface_hub import constants

    return constants.ENDPOINT


def is_cached(weights: Weights) -> bool:
    """Whether the weights are on this machine."""
    if not weights.repo:
        return weights.place.is_file()
    from huggingface_hub import try_to_load_from_cache

    return any(isinstance(try_to_load_from_cache(weights.repo, file), str) for file in weights.files)


@contextmanager
def reached(name: str, weights: Weights | None, role: str) -> Iterator[None]:
    """What loads published weights in this block finds them on this machine, without asking the network, or a network.

    Raises ConfigError in one line where there is neither, after one attempt to connect.
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
                f"{name}: its weights in {weights.place} cannot be loaded ({one_line(error)}); delete them there and "
                "they are downloaded again."
            ) from error
        raise ConfigError(not_here(name, weights, role, one_line(error))) from error


def not_here(name: str, weights: Weights, role: str, reason: str) -> str:
    """The one line for weights that could not be fetched, with where they are looked for and the manual route."""
    return (
        f"{name}: its pretrained weights are not in {weights.place} ({weights.setting} moves that) and could not be "
        f"fetched ({reason}). Download {weights.download} where there is a network and set {role}.pretrained=FILE, or "
        f"train from scratch with {role}.pretrained=false."
    )


@contextmanager
def offline(wanted: bool) -> Iterator[None]:
    """Hugging Face's client asks the network for nothing in this block, where `wanted`."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or wanted
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def no_route(weights: Weights) -> str:
    """Why weights cannot be fetched; an empty string where their server, or the proxy before it, answers."""
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
    """Why a server cannot be reached; an empty string where it can. A name that nobody resolves has no timeout of its
    own, so that this waits beside it."""
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
