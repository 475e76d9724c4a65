"""Whether the records of runs follow from their evidence: everything is computed once more and compared.

Verified means that values, intervals and counts, tables of images and defects, and what ``run.json`` says of them
follow from the evidence and the protocol. Whether the method gave that evidence, only running it again can tell.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import pandas as pd

from hrbench._util.progress import track
from hrbench._util.received import inside
from hrbench.data.sample import Category
from hrbench.errors import HrbenchError
from hrbench.evidence import Evidence
from hrbench.metrics.measurement import measure
from hrbench.protocol import Protocol, list_protocols, load_protocol
from hrbench.runs.cost import timing
from hrbench.runs.environment import environment
from hrbench.runs.identity import maps_name, run_prefix
from hrbench.runs.recomputed import TOLERANCE, Counted, close_values, table_problems
from hrbench.runs.record import RunRecord, groups_digest, is_sealed
from hrbench.runs.reference import Reference, index_problems, reference_of, reference_problems
from hrbench.runs.scoring import run_columns, threshold_record
from hrbench.runs.store import Run, find_runs
from hrbench.runs.submission import submission_of, submission_problems
from hrbench.runs.tables import TABLES

__all__ = ["MEANING", "Verification", "verification_text", "verify_run", "verify_runs"]

_LARGEST_RULES = 1 << 20  # bytes

MEANING = (
    "Verified: the records follow from the evidence and the protocol. Whether the method gave that evidence, only "
    "running it again can tell."
)


@dataclasses.dataclass(frozen=True)
class Verification:
    """What came of verifying a run.

    Attributes
    ----------
    folder : Path
        Of the run.
    label : str
        Dataset, category and name.
    problems : tuple of str
        Everything that is not as it should be; none: verified.
    protocols : tuple of str
        Those whose records were computed anew.
    numbers, equal : int
        Numbers compared, and those of them that are equal to the last bit.
    images : bool
        Whether images and masks were compared with those of a dataset on disk.
    """

    folder: Path
    label: str
    problems: tuple[str, ...]
    protocols: tuple[str, ...] = ()
    numbers: int = 0
    equal: int = 0
    images: bool = False

    @property
    def verified(self) -> bool:
        """Whether nothing was found."""
        return not self.problems


def verify_runs(
    output: Path,
    protocols: Sequence[Protocol] = (),
    categories: Sequence[Category] = (),
    *,
    jobs: int = 1,
) -> list[Verification]:
    """Verify all finished runs below a folder; of those that were published also what stands beside them.

    Parameters
    ----------
    output : Path
    protocols : sequence of Protocol
        Beside those that ship with hrbench, and those that were published with a run.
    categories : sequence of Category
        Whose images and masks are compared with the evidence of their runs.
    jobs : int
        Processes.

    Raises
    ------
    HrbenchError
        If there is no run, or none of the categories' dataset.
    """
    runs = find_runs(output)
    references = _references(runs, categories)
    one = partial(_verify_folder, protocols=tuple(protocols), references=references)
    folders = [run.folder for run in runs]
    if jobs > 1 and len(runs) > 1:
        with ProcessPoolExecutor(min(jobs, len(runs)), multiprocessing.get_context("spawn")) as pool:
            found = list(track(pool.map(one, folders), "verifying", total=len(runs), unit="run"))
    else:
        found = [one(folder) for folder in track(folders, "verifying", total=len(runs), unit="run")]
    beside: dict[Path, list[str]] = {}
    for number, result in enumerate(found):
        if (folder := submission_of(result.folder)) is not None:
            if folder not in beside:
                beside[folder] = submission_problems(folder)
            found[number] = dataclasses.replace(result, problems=(*result.problems, *beside[folder]))
    return found


def _references(runs: Sequence[Run], categories: Sequence[Category]) -> dict[tuple[str, str], Reference]:
    """Return what the categories show that there are runs of, by dataset and category."""
    if not categories:
        return {}
    asked = set()
    for run in runs:
        try:
            asked.add((run.about.dataset.name, run.about.dataset.category))
        except HrbenchError:  # it says so when it is its turn
            continue
    found = {key: reference_of(c) for c in categories if (key := (c.dataset, c.name)) in asked}
    if not found:
        raise HrbenchError(
            f"no run of dataset {categories[0].dataset!r}, whose images were to be compared; found runs of "
            f"{', '.join(sorted({repr(name) for name, _ in asked})) or 'none'}"
        )
    return found


def _verify_folder(
    folder: Path, protocols: Sequence[Protocol], references: Mapping[tuple[str, str], Reference]
) -> Verification:
    try:
        run = Run(folder)
        key = (run.about.dataset.name, run.about.dataset.category)
        return verify_run(run, [*protocols, *_published(folder)], references.get(key))
    except HrbenchError as error:
        return Verification(folder, "/".join(folder.absolute().parts[-3:]), (str(error),))


def _published(run: Path) -> Iterator[Protocol]:
    """Yield the protocols that were published with a run."""
    if (folder := submission_of(run)) is not None:
        for path in sorted((folder / "protocols").glob("*.toml")):
            if path.is_file() and path.stat().st_size <= _LARGEST_RULES:
                yield load_protocol(inside(folder, path))


def verify_run(run: Run, protocols: Sequence[Protocol] = (), reference: Reference | None = None) -> Verification:
    """Compute everything that a run recorded once more from its evidence, and compare.

    Parameters
    ----------
    run : Run
    protocols : sequence of Protocol
        Beside those that ship with hrbench.
    reference : Reference, optional
        What the images and masks of its category show.

    Raises
    ------
    HrbenchError
        If ``run.json`` cannot be read.
    """
    about = run.about
    problems = _record_problems(run)
    tables: dict[str, pd.DataFrame] = {}
    for name in TABLES:
        try:
            tables[name] = getattr(run, name)
        except HrbenchError as error:
            problems.append(str(error))
    differ: list[str] = []
    done: list[str] = []
    counted = Counted()
    kept = {part.name for part in about.evidence if run.files.evidence(part.name).is_dir()}
    if about.evidence and not kept:
        problems.append("its evidence is not kept here: nothing can be computed anew")
    for number, (name, said) in enumerate(about.protocols.items()):
        try:
            protocol = _rules(name, said.version, said.sha256, protocols)
            part = about.evidence_for(protocol)
            if part is not None and part.name not in kept:
                problems += [f"evidence/{part.name}: is not kept here, which {name} is computed from"] if kept else []
                continue
            evidence = run.load_evidence(protocol)
        except HrbenchError as error:
            problems.append(_without_advice(error))
            continue
        problems += _evidence_problems(about, evidence)
        problems += _first_problems(about, evidence, protocol) if number == 0 else []
        problems += reference_problems(reference, evidence) if reference else []
        try:
            measured = measure(evidence, protocol)
        except HrbenchError as error:
            problems.append(f"{name}: {error}")
            continue
        for table, recorded in tables.items():
            differ += table_problems(table, recorded, measured, protocol, counted)
        done.append(name)
    problems += [*_of_other_version(about), *differ] if differ else []
    problems += _name_problems(about, tables)
    if not about.protocols:
        problems.append(f"{run.files.record.name}: names no protocol, there is nothing to verify")
    if reference is not None:
        problems += index_problems(about, reference)
    label = f"{about.dataset.name}/{about.dataset.category}/{run.folder.name}"
    unique = tuple(dict.fromkeys(problem.replace(f"{run.folder}{os.sep}", "") for problem in problems))
    return Verification(run.folder, label, unique, tuple(done), counted.numbers, counted.equal, reference is not None)


def verification_text(found: Sequence[Verification], *, most: int = 12) -> str:
    """Say of each run whether it is verified and, of up to `most` things each, why not; and what that means."""
    lines = []
    for result in found:
        of_images = "with its images and masks" if result.images else "its images not looked at"
        counts = f"{', '.join(result.protocols)}: {result.numbers:,} numbers"
        if result.equal < result.numbers:
            counts += f", {result.numbers - result.equal:,} of them only within {TOLERANCE:g}"
        if result.verified:
            lines.append(f"verified      {result.label} ({counts}; {of_images})")
            continue
        lines.append(f"NOT VERIFIED  {result.label}")
        lines += [f"    {problem}" for problem in result.problems[:most]]
        lines += [f"    and {more} more"] if (more := len(result.problems) - most) > 0 else []
    good = sum(result.verified for result in found)
    lines.append(f"{good} of {len(found)} runs verified.{f' {MEANING}' if good else ''}")
    return "\n".join(map(_printable, lines))


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)


def _record_problems(run: Run) -> list[str]:
    """Return what of ``run.json`` and of the files it names can be told without computing anything."""
    about, name, problems = run.about, run.files.record.name, []
    if is_sealed(run.files.record) is False:
        problems.append(f"{name}: was edited after it was written")
    if about.run != run.folder.name:
        problems.append(f"{name}: run is {about.run!r}, expected the name of its folder, {run.folder.name!r}")
    method = about.method
    prefix = run_prefix(method.name, method.preset, about.seed)
    if about.run.rpartition("-")[0] != prefix:
        problems.append(f"{name}: run is {about.run!r}, expected {prefix}-... of this method, preset and seed")
    if method.reference == "maps" and about.run != (
        maps := maps_name(about.dataset.index_sha256, method.name, exact=bool(method.options.get("exact")))
    ):
        problems.append(f"{name}: run is {about.run!r}, expected {maps!r} of maps of these images")
    kept = {path for path in run.files.own() if not run.files.name_of(path).startswith("maps/")}
    for path in run.damaged():
        if path in kept and path.parent.parent != run.files.path / "evidence":  # of which loading says it
            problems.append(f"{run.files.name_of(path)}: is not as {name} says")
    if about.files:
        known = {run.files.path / file for file in about.files}
        new = sorted(run.files.name_of(path) for path in kept - known - {run.files.record})
        problems += [f"{file}: {name} does not name it" for file in new]
    return problems


def _rules(name: str, version: int, digest: str, given: Sequence[Protocol]) -> Protocol:
    """Return the protocol that a run was measured under; an error where none of these rules is known."""
    shipped = [load_protocol(known) for known in list_protocols(former=True)]
    same = [protocol for protocol in shipped if protocol.name == name]
    for protocol in (*given, *shipped):
        if protocol.name == name and protocol.digest == digest:
            if same and digest not in {known.digest for known in same}:
                break
            if protocol.version != version:
                raise HrbenchError(
                    f"protocol {name!r}: recorded as version {version}, its rules are {protocol.version}"
                )
            return protocol
    if same:
        raise HrbenchError(
            f"protocol {name!r}: measured under other rules (sha256 {digest[:12]}) than any version that hrbench ships "
            "by this name; expected another name for other rules"
        )
    asked = [protocol for protocol in given if protocol.name == name]
    wrong = f"the rules given by this name have sha256 {asked[0].digest[:12]}, " if asked else ""
    raise HrbenchError(
        f"protocol {name!r}: {wrong}expected the file of its rules (--protocol FILE), sha256 {digest[:12]}"
    )


def _without_advice(error: HrbenchError) -> str:
    return str(error).partition("; the `hrbench run`")[0].partition("; run the job")[0]


def _of_other_version(about: RunRecord) -> list[str]:
    """Say whether a run was recorded by other code than this, which may know other metrics."""
    now, then = environment(), about.environment
    if all(now[key] == then.get(key) for key in ("hrbench", "commit")):
        return []
    return [
        f"recorded by hrbench {then.get('hrbench', 'unknown')} (commit {then.get('commit', 'unknown')}), this is "
        f"{now['hrbench']} ({now['commit']}): `hrbench rescore` writes what this version computes"
    ]


def _evidence_problems(about: RunRecord, evidence: Evidence) -> list[str]:
    """Return where ``run.json`` counts other images than the evidence."""
    images, calibration = evidence.images, evidence.calibration
    groups, conditions = (
        groups_digest(dict(zip(images["id"], images[column], strict=True))) for column in ("group", "condition")
    )
    return [
        f"run.json: {key} is {said}, the evidence has {found}"
        for key, said, found in (
            ("dataset.test", about.dataset.test, len(images)),
            ("dataset.test_defective", about.dataset.test_defective, int(images["label"].sum())),
            ("dataset.test_unmasked", about.dataset.test_unmasked, len(evidence.unmasked)),
            ("dataset.held_out", about.dataset.held_out, calibration.images if calibration else 0),
            ("dataset.groups_sha256", about.dataset.groups_sha256[:12] or "none", groups[:12] or "none"),
            ("dataset.conditions_sha256", about.dataset.conditions_sha256[:12] or "none", conditions[:12] or "none"),
        )
        if said != found
    ]


def _first_problems(about: RunRecord, evidence: Evidence, protocol: Protocol) -> list[str]:
    """Return where what follows from the evidence of the first protocol stands otherwise in ``run.json``."""
    problems = []
    threshold = threshold_record(evidence, protocol)
    for key in ("rule", "value", "normal_images"):
        said, found = getattr(about.threshold, key), getattr(threshold, key)
        if said != found and not close_values(said, found):
            problems.append(f"run.json: threshold.{key}: recorded {said}, recomputed {found}")
    if evidence.spec.side is None:
        pixels = evidence.images["height"] * evidence.images["width"]
        took = timing(evidence.images, dict(zip(evidence.images["id"], pixels.tolist(), strict=True)))
        for key, found in took.items():
            said = getattr(about.cost, key)
            if not close_values(said, found):
                problems.append(f"run.json: cost.{key}: recorded {said}, recomputed {found}")
    return problems


def _name_problems(about: RunRecord, tables: Mapping[str, pd.DataFrame]) -> list[str]:
    """Return where the tables name another run, or a protocol that the run does not."""
    problems = []
    for name, table in tables.items():
        others = sorted(set(table["protocol"]) - about.protocols.keys()) if len(table) else []
        problems += [f"{name}: rows of protocol {other!r}, which run.json does not name" for other in others]
    records = tables.get("records", pd.DataFrame())
    for column, value in run_columns(about).items() if len(records) else ():
        if wrong := sorted(map(str, set(records[column]) - {value})):
            problems.append(f"records: {column} is {wrong[0]!r}, run.json has {value!r}")
    return problems
