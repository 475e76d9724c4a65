"""Short names that a reader gives: ``mobilenetv2_100 file=MNv2``, said once for every table, legend and panel."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

from hrbench.errors import HrbenchError, unknown_name
from hrbench.report.configurations import Configuration, CountedRun, identify

__all__ = ["parse_labels", "relabel"]


def parse_labels(texts: Iterable[str]) -> dict[str, str]:
    """Return labels from ``OLD=NEW``; the last equals sign counts.

    Raises
    ------
    HrbenchError
        For another form, or two labels of one thing.

    Examples
    --------
    >>> parse_labels(["PaDiM (anomalib)=PaDiM", "steps = 20=short"])
    {'PaDiM (anomalib)': 'PaDiM', 'steps = 20': 'short'}
    """
    labels: dict[str, str] = {}
    for text in texts:
        old, _, new = (part.strip() for part in text.rpartition("="))
        if not old or not new:
            raise HrbenchError(f"--label {text!r}: expected OLD=NEW")
        if labels.setdefault(old, new) != new:
            raise HrbenchError(f"--label {text!r}: {old!r} is called {labels[old]!r} already, expected one label of it")
    return labels


def relabel(runs: Sequence[CountedRun], labels: Mapping[str, str]) -> list[CountedRun]:
    """Give the configurations of runs, from :func:`identify`, the names that a reader wants.

    Parameters
    ----------
    runs : sequence of CountedRun
    labels : mapping of str to str
        By what is replaced: a method's title or name, a preset, a view, weights, or the whole name of a row.

    Raises
    ------
    HrbenchError
        If nothing has such a name, or two rows would have the same.
    """
    plain = {run.configuration.identity: run.configuration for run in runs}
    known = {name for of in plain.values() for name in (*_parts(of), of.short, of.label)}
    for old in labels:
        if old not in known:
            raise unknown_name(
                "name to label", old, {name for of in plain.values() for name in (*_parts(of), of.short)}
            )
    worded = identify([dataclasses.replace(run, configuration=_worded(run.configuration, labels)) for run in runs])
    named = {
        run.configuration.identity: _renamed(run.configuration, plain[run.configuration.identity], labels)
        for run in worded
    }
    taken: dict[str, Configuration] = {}
    for identity, configuration in named.items():
        if (other := taken.setdefault(configuration.short, plain[identity])) is not plain[identity]:
            raise HrbenchError(
                f"--label: both {other.short!r} and {plain[identity].short!r} would be called "
                f"{configuration.short!r}, expected a name for each"
            )
    return [dataclasses.replace(run, configuration=named[run.configuration.identity]) for run in worded]


def _parts(of: Configuration) -> tuple[str, ...]:
    return of.title, of.method, of.preset, of.view, of.weights


def _worded(of: Configuration, labels: Mapping[str, str]) -> Configuration:
    return dataclasses.replace(
        of,
        title=labels.get(of.title, labels.get(of.method, of.title)),
        weights=labels.get(of.weights, of.weights),
        preset_text=labels.get(of.preset, of.preset),
        view_text=labels.get(of.view, of.view),
    )


def _renamed(of: Configuration, plain: Configuration, labels: Mapping[str, str]) -> Configuration:
    """Return a configuration whose whole name has a label with that in place of title and name."""
    if plain.short == plain.title:  # it was a label of the title
        return of
    new = labels.get(plain.short, labels.get(plain.label))
    return of if new is None else dataclasses.replace(of, title=new, short=new, label=new)
