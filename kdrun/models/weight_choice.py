"""Choice among several sets of weights in one file: by role, by raw weights or average, and by fit."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from kdrun.errors import listed
from kdrun.models.weight_names import NO_WEIGHTS, Group, Misfits, is_known, rename

Convert = Callable[[dict[str, Tensor]], dict[str, Tensor]]


@dataclass(frozen=True)
class Wanted:
    """Selection from a file that holds several sets of weights. role: teacher or student; weights: raw or ema (a
    moving average of them); ignore: patterns of extra names that are allowed."""

    role: str = "student"
    weights: str = "ema"
    ignore: tuple[str, ...] = ()


@dataclass(frozen=True)
class Network:
    """Target of loading: the network's own state, the names of its classifier, and the names that may stay unloaded."""

    own: Mapping[str, Tensor]
    heads: Collection[str]
    free: Collection[str] = ()

    def misfits(self, group: Group) -> Misfits:
        return group.misfits(self.own, self.free)


@dataclass
class Choice:
    """Chosen weights, what prevents them from fitting, and notes about the choice."""

    group: Group
    misfits: Misfits
    notes: list[str] = field(default_factory=list)


def choose(found: list[Group], network: Network, wanted: Wanted) -> Choice | None:
    """Choose the weights to load from a file; return None if it shares no name with the network."""
    found = [group for group in found if not is_ignored(group, wanted.ignore)] or found
    pool = as_they_are([fitted(group, network, wanted.ignore) for group in found], network)
    pool = [group for group in pool if group.tensors.keys() & network.own.keys()]
    pool = with_strangers(pool, network, wanted.role)
    if not pool:
        return None
    notes: list[str] = []
    all_roles, pool = pool, of_role(pool, wanted.role)
    pool = raw_or_average(pool, network, wanted, notes)
    best = min((network.misfits(group).order for group in pool), default=None)
    equal = [group for group in pool if network.misfits(group).order == best]
    others = [group for group in equal[1:] if not same(group, equal[0])]
    if others:
        way = f"{wanted.role}.checkpoint_ignore=[{','.join((*wanted.ignore, f'{equal[0].path}.*'))}]"
        shown = f" ('{way}' loads it)" if separate(equal[0], others[0]) else ""
        notes.append(f"{equal[0].path} is loaded, not {others[0].path}, which fits as well{shown}")
    notes = [*role_note(equal[0], all_roles, wanted.role), *notes, *told(equal[0])]
    return Choice(equal[0], network.misfits(equal[0]), notes)


def is_ignored(group: Group, ignore: Collection[str]) -> bool:
    """Return True if a pattern such as last.* matches everything in the group's entry."""
    return any(pattern.endswith(".*") and fnmatchcase(f"{group.path}.", pattern) for pattern in ignore)


def separate(one: Group, other: Group) -> bool:
    """Return True if a pattern can match the first group's entry without the other's."""
    parts = (*one.place, *one.prefix)
    return parts != () and (*other.place, *other.prefix)[: len(parts)] != parts


def fitted(group: Group, network: Network, ignore: Collection[str]) -> Group:
    """Return the group with its layers renamed if that fits better, without the names that `ignore` matches."""
    if not network.misfits(group):
        return group
    shared = {name.partition(".")[0] for name in network.own}
    if len(shared) == 1 and is_known(prefix := shared.pop()):  # the network is a wrapper itself
        inner = below(group, prefix)
        if network.misfits(inner).order < network.misfits(group).order:
            group = inner
    renamed = rename(group, network.own, network.heads)
    if network.misfits(renamed).order < network.misfits(group).order:
        group = renamed
    passed = tuple(
        name
        for name in network.misfits(group).extra
        if any(fnmatchcase(name, pattern) or fnmatchcase(group.old[name], pattern) for pattern in ignore)
    )
    kept = {name: value for name, value in group.tensors.items() if name not in passed}
    return replace(group, tensors=kept, passed=passed)


def below(group: Group, prefix: str) -> Group:
    """Return the group with a prefix before its names."""
    tensors = {f"{prefix}.{name}": value for name, value in group.tensors.items()}
    return replace(group, tensors=tensors, old={f"{prefix}.{name}": old for name, old in group.old.items()}, put=prefix)


def as_they_are(found: list[Group], network: Network) -> list[Group]:
    """Drop the groups that strip one more prefix from names that already fit with it."""
    whole = [group for group in found if not network.misfits(group)]
    return [
        group
        for group in found
        if not any(
            group.place == other.place
            and len(group.prefix) > len(other.prefix)
            and group.prefix[: len(other.prefix)] == other.prefix
            for other in whole
        )
    ]


def with_strangers(pool: list[Group], network: Network, role: str) -> list[Group]:
    """Return the groups of known names; if none of them fits that could be the raw weights of this role, those of
    unknown names that fit, and the known ones that do."""
    known = [group for group in pool if group.known]
    fitting = [group for group in pool if network.misfits(group).wrong == 0 and not NO_WEIGHTS.search(group.path)]
    strangers = [group for group in fitting if not group.known]
    if strangers and all(group.kinds & {other_than(role), "averaged"} for group in fitting if group.known):
        return fitting
    return known


def of_role(pool: list[Group], role: str) -> list[Group]:
    """Return the groups of this role, if any of them is no average; else those that are not of the other, if any; else
    all."""
    mine = [group for group in pool if role in group.kinds]
    if any("averaged" not in group.kinds for group in mine):
        return mine
    return [group for group in pool if other_than(role) not in group.kinds] or pool


def role_note(chosen: Group, pool: list[Group], role: str) -> list[str]:
    """Return a note if a file holds weights of the other role: which are loaded."""
    other = other_than(role)
    if role in chosen.kinds and any(other in group.kinds for group in pool):
        return [f"the file holds a teacher and a student; the {role} ({chosen.path}) is loaded"]
    if other in chosen.kinds:
        return [f"its {other} ({chosen.path}) is loaded as the {role}"]
    if any(other in group.kinds for group in pool):
        return [f"the file holds {chosen.path} and a {other}; {chosen.path} is loaded"]
    return []


def other_than(role: str) -> str:
    """Return the other role: teacher for a student, student for a teacher."""
    return "student" if role == "teacher" else "teacher"


def raw_or_average(pool: list[Group], network: Network, wanted: Wanted, notes: list[str]) -> list[Group]:
    """Return the groups selected by `wanted.weights`, if the file has both kinds. An average may cover only the
    parameters, without batch norm's statistics: then the raw weights are used."""
    average = [group for group in pool if "averaged" in group.kinds]
    raw = [group for group in pool if "averaged" not in group.kinds]
    if not average or not raw:
        return pool
    first, second = (best_of(part, network) for part in (average, raw))
    setting = f"{wanted.role}.checkpoint_weights"
    lacks = network.misfits(first).wrong
    if wanted.weights == "raw":
        if network.misfits(second).wrong > lacks:
            return pool
        notes.append(f"the file holds raw weights and an average of them ({first.path}); the raw ones are loaded")
        return raw
    if lacks > network.misfits(second).wrong:
        if network.misfits(second).wrong == 0:
            notes.append(
                f"the average in it ({first.path}) lacks {lacks} of the network's tensors; the raw weights are loaded"
            )
        return raw
    notes.append(
        f"the file holds raw weights and an average of them; the average ({first.path}) is loaded "
        f"({setting}=raw loads {second.path})"
    )
    return average


def best_of(pool: list[Group], network: Network) -> Group:
    """Return the group that fits best; the first, if several fit equally."""
    return min(pool, key=lambda group: network.misfits(group).order)


def same(one: Group, other: Group) -> bool:
    """Return True if two groups hold the same numbers under the same names."""
    return one.tensors.keys() == other.tensors.keys() and all(
        value is other.tensors[name] or (plain(value, other.tensors[name]) and torch.equal(value, other.tensors[name]))
        for name, value in one.tensors.items()
    )


def plain(*tensors: Tensor) -> bool:
    """Return True if tensors can be compared: same type and shape, dense, and with data."""
    kinds = {(tensor.dtype, tensor.shape, tensor.layout, tensor.is_meta, tensor.is_quantized) for tensor in tensors}
    return len(kinds) == 1 and not tensors[0].is_meta and tensors[0].layout == torch.strided


def told(group: Group) -> list[str]:
    """Describe what was stripped, renamed and ignored; an empty list if the names were used unchanged."""
    notes = []
    if group.prefix:
        notes.append(f"names without {'.'.join(group.prefix)}.")
    if group.put:
        notes.append(f"names below the network's own {group.put}.")
    if not all(map(is_known, group.place)):
        notes.append(f"read from its entry {'.'.join(group.place)}")
    if group.renamed:
        pairs = list(dict.fromkeys(shortened(old, new) for new, old in group.renamed.items()))
        notes.append(f"renamed {listed([f'{old} to {new}' for old, new in pairs], 4)}")
    if group.passed:
        notes.append(f"ignored {listed(group.passed)}")
    return notes


def shortened(old: str, new: str) -> tuple[str, str]:
    """Return the parts in which two names differ: (layer1.0.shortcut.0.weight, layer1.0.downsample.0.weight) ->
    (shortcut, downsample)."""
    a, b = old.split("."), new.split(".")
    while len(a) > 1 and len(b) > 1 and a[-1] == b[-1]:
        a, b = a[:-1], b[:-1]
    while len(a) > 1 and len(b) > 1 and a[0] == b[0]:
        a, b = a[1:], b[1:]
    return re.sub(r"\.\d+\.", ".N.", ".".join(a)), re.sub(r"\.\d+\.", ".N.", ".".join(b))
