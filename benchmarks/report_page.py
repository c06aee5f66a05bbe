"""Of report.py: docs/report/index.md and its pictures, from the data files alone."""

import json
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import common
import numpy as np
from PIL import Image

Line = Mapping[str, Any]
_HEAD = """# Report

Made by `make report`, which runs the commands below and writes this page of what they print (`docs/report/data`). Nothing on
it is written by hand but the words of the goals at its end (`docs/report/goals.toml`). `make report ARGS="--only SECTION"`
measures one section again. Bands are the quartiles over seeds around their median; a cell `a (b to c)` is the median, the least
and the greatest. Seconds are of whole commands, start and compilation included.

{table}
The sections together took {minutes:.0f} minutes. A `+` after a commit: files differed from it.
"""
_GOALS = """## Goals missed

Goals of the project that were not reached, or not shown. What a section above measures is taken from its data; the rest was
given by the command that stands beside it.

"""
_REVERB = (
    ("insert", {
        "insert_per_s": "ours",
        "official_insert_whole_per_s": "official, whole",
        "official_insert_steps_per_s": "official, by steps",
    }),
    ("sample", {
        "sample_per_s": "ours",
        "official_sample_bare_per_s": "official, C++ sampler",
        "official_sample_dataset_per_s": "official, dataset",
    }),
)  # fmt: skip


def load(folder: Path, name: str) -> dict[str, Any] | None:
    """What a section has measured, or None."""
    path = folder / "data" / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def render(folder: Path, sections: Mapping[str, tuple[str, str]]) -> None:
    """Writes the page. sections: title, and what to say where there is no data, by name."""
    loaded = {name: load(folder, name) for name in sections}
    found = {name: data for name, data in loaded.items() if data}
    parts = [_head(found, sections)]
    for name, (title, hint) in sections.items():
        parts.append(f"## {title}\n")
        parts += _section(folder, name, found[name]) if name in found else [f"Not measured. {hint or 'make report'}\n"]
    parts.append(_goals(folder, found))
    (folder / "index.md").write_text("\n".join(parts))


def _head(found: Mapping[str, Any], sections: Mapping[str, tuple[str, str]]) -> str:
    rows = []
    for name, (title, _) in sections.items():
        data = found.get(name)
        if data is None:
            rows.append([f"`{name}`", title, "not measured", "", "", ""])
            continue
        bad = sum(run["exit_code"] != 0 for run in data["runs"])
        state = f"{bad} of {len(data['runs'])} commands failed" if bad else "measured"
        took = f"{data['seconds']:,.0f}"
        rows.append([f"`{name}`", title, state, data["date"][:10], f"`{data['commit']}`", took])
    total = sum(data["seconds"] for data in found.values())
    rows.append(["", "all together", "", "", "", f"{total:,.0f}"])
    return _HEAD.format(table=common.table(["section", "", "state", "date", "commit", "seconds"], rows), minutes=total / 60)


def _section(folder: Path, name: str, data: Mapping[str, Any]) -> Iterator[str]:
    lines = [line for run in data["runs"] for line in run["lines"]]
    shown: set[str] = set()
    for benchmark in [line["benchmark"] for line in lines]:
        if benchmark not in shown:
            shown.add(benchmark)
            own = [line for line in lines if line["benchmark"] == benchmark]
            show = _SHOWS.get(benchmark, _facts)
            yield show(own, folder, f"{name}_{re.sub(r'[^a-z]+', '_', benchmark.lower())}")
    for run in data["runs"]:
        if run["exit_code"] != 0:
            yield f"**Failed** with exit code {run['exit_code']}: `{run['command']}`: {run.get('error', 'it said nothing')}\n"
    yield "\n".join(f"* `{run['command']}`, {run['seconds']:,.0f} s{_load(run)}{_versions(run)}" for run in data["runs"])
    yield f"\n{data['date']}, commit `{data['commit']}`, {_machine(data['machine'])}.\n"


def _load(run: Line) -> str:
    return f", beside a load of {run['load']:.1f}" if run.get("load", 0) > 0.5 else ""


def _versions(run: Line) -> str:
    return "; " + ", ".join(f"{name} {version}" for name, version in run["versions"].items()) if run.get("versions") else ""


def _machine(machine: Line) -> str:
    cores = f"{machine['cores']} of {machine['cores_there']} cores"
    return f"{machine['cpu']}, {cores}, {machine['memory_gb']} GB"


# Learning.


def _curves(lines: Sequence[Line], folder: Path, stem: str) -> str:
    """A panel for each case, a line for each arm; a table of how all ended."""
    cases = list(dict.fromkeys(line["case"] for line in lines))
    made, axes = common.figure(len(cases), width=5.5 if len(cases) > 1 else 7.0, height=3.8)
    rows = []
    for panel, case in zip(axes[0], cases, strict=True):
        own = [line for line in lines if line["case"] == case]
        controls = [line["arm"] for line in own if line["control"]]
        for i, line in enumerate(own):
            curve = line["curve"]
            at, values = np.array(curve["at"]), np.array(curve["values"], np.float64)
            colour, style = f"C{i}", "-"
            if line["control"]:
                colour, style = "0.45", ("--", ":", "-.")[controls.index(line["arm"]) % 3]
            common.band(panel, at, values, line["arm"], colour, style)
            late = np.nanmean(values[at > (1 - common.LAST_SHARE) * at[-1]], axis=0)
            rows.append([line["title"], line["arm"], common.spread(late), *_ends(line), f"{at[-1]:,.0f}", values.shape[1]])
        first = own[0]["curve"]
        panel.set(title=own[0]["title"], xlabel=first["x"], ylabel=first["y"], yscale="log" if first.get("log") else "linear")
        panel.xaxis.set_major_formatter(lambda value, _: f"{value / 1000:,.0f}k" if value >= 1000 else f"{value:g}")
        panel.legend(fontsize="small", title=f"median and quartiles, {len(first['values'][0])} seeds", title_fontsize="x-small")
    columns = ["task", "arm", "last fifth of training", "evaluation of each seed", "agent steps/s", "budget of a seed", "seeds"]
    keep = [i for i in range(len(columns)) if any(str(row[i]) for row in rows)]
    text = common.table([columns[i] for i in keep], [[row[i] for i in keep] for row in rows])
    return f"{_save(made, folder, stem, 'learning curves')}\n{text}"


def _ends(line: Line) -> tuple[str, str]:
    rates = line.get("agent_steps_per_second", [])
    evaluation = ", ".join(f"{value:.3g}" for value in line.get("evaluation", []))
    return evaluation, f"{np.median(rates):,.0f}" if rates else ""


# Speed.


def _parts(lines: Sequence[Line], folder: Path, stem: str) -> str:
    """Anakin, Sebulba: microseconds of the bare parts, stacked, beside the whole; the share."""
    made, axes = common.figure(1, width=8.5, height=0.5 * len(lines) + 1.4)
    (panel,) = axes[0]
    labels = [_setting(line) for line in lines]
    whole = [line["whole_us_per_step"] for line in lines]
    left = np.zeros(len(lines))
    for i, part in enumerate(("environment", "act", "learn")):
        width = np.array([line[f"{part}_us_per_step"] for line in lines]) / whole
        panel.barh(labels, width, left=left, color=f"C{i}", height=0.6, label=part)
        left += width
    panel.axvline(1.0, color="0.2", linestyle="--", label="the whole program")
    panel.set(xlabel="time of the bare parts, in units of the whole program's", ylabel="")
    panel.invert_yaxis()
    made.legend(fontsize="small", ncols=4, loc="outside upper center", frameon=False)
    rows = [
        [label, f"{line['agent_steps_per_second']:,}", f"{line['share']:.3f}", f"{line['whole_us_per_step']:.4g}"]
        + [f"{line[f'{part}_us_per_step']:.4g}" for part in ("environment", "act", "learn")]
        for label, line in zip(labels, lines, strict=True)
    ]
    columns = ["case", "agent steps/s", "share", "whole, us a step", "environment", "act", "learn"]
    note = "share: the sum of the bare parts' times over the whole's; 1 means that the runtime costs nothing.\n"
    return f"{_save(made, folder, stem, 'bare parts against the whole')}\n{note}\n{common.table(columns, rows)}"


def _setting(line: Line) -> str:
    if line["benchmark"] == "anakin":
        return f"{line['agent']} on {line['env']}, {line['num_envs']} environments"
    lag = "in turns" if "sebulba.sync=True" in line["settings"] else f"lag {line['max_lag']}"
    threads = f"{line['threads']} thread{'s' * (line['threads'] > 1)}"
    return f"{line['agent']} on {line['env']}, {line['num_envs']} x {threads}, {lag}"


def _bars(lines: Sequence[Line], folder: Path, stem: str) -> str:
    """Environments of the host, pictures of ray_maze: rates with the range of rounds."""
    rows = [[line["case"], line["num_envs"], f"{line['per_second']:,.0f}", _range(line["all"])] for line in lines]
    made, axes = common.figure(1, width=7.5, height=0.4 * len(lines) + 1.2)
    (panel,) = axes[0]
    middle, all_rates = np.array([line["per_second"] for line in lines]), [line["all"] for line in lines]
    error = [middle - [min(rates) for rates in all_rates], [max(rates) for rates in all_rates] - middle]
    panel.errorbar(middle, [line["case"] for line in lines], xerr=error, fmt="o", capsize=3)
    panel.margins(y=0.3)
    panel.set(xscale="log", xlabel=f"{lines[0]['unit']} (median of rounds in turn, least to greatest)")
    panel.invert_yaxis()
    columns = ["case", "environments", lines[0]["unit"], "least to greatest"]
    return f"{_save(made, folder, stem, 'rates')}\n{common.table(columns, rows)}"


def _range(values: Sequence[float]) -> str:
    return f"{min(values):,.0f} to {max(values):,.0f}"


def _search(lines: Sequence[Line], folder: Path, stem: str) -> str:
    del folder, stem
    names = {"kind": "kind", "searches_per_second": "act: searches/s", "bare_searches_per_second": "bare mctx: searches/s"}
    names |= {
        "ratio": "act over bare",
        "ratio_min": "least",
        "ratio_max": "greatest",
        "agent_steps_per_second": "training: agent steps/s",
    }
    return _columns(lines, names)


def _columns(lines: Sequence[Line], names: Mapping[str, str]) -> str:
    return common.table(list(names.values()), [[_text(line.get(name, "")) for name in names] for line in lines])


def _text(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return "-" if value is None else str(value).lower()
    if isinstance(value, int) or (isinstance(value, float) and abs(value) >= 1000):
        return f"{value:,.0f}"
    if isinstance(value, float):
        return f"{value:.4g}"
    return ", ".join(_text(item) for item in value) if isinstance(value, list) else str(value)


# Peers, Reverb.


def _peer(lines: Sequence[Line], folder: Path, stem: str) -> str:
    del folder, stem
    names = {
        "case": "work",
        "agent_steps_per_second": "agent steps/s",
        "peer_agent_steps_per_second": "the peer's",
        "ratio": "ratio",
    }
    names |= {"cpu_us_per_step": "CPU us a step", "peer_cpu_us_per_step": "the peer's", "cpu_ratio": "ratio of CPU time"}
    return _columns(lines, {name: title for name, title in names.items() if any(name in line for line in lines)})


def _reverb(lines: Sequence[Line], folder: Path, stem: str) -> str:
    made, axes = common.figure(2, width=5.2, height=3.4)
    for panel, (what, names) in zip(axes[0], _REVERB, strict=True):
        for i, (name, label) in enumerate(names.items()):
            places = np.arange(len(lines)) + 0.27 * (i - 1)
            panel.bar(places, [line[name] for line in lines], 0.25, label=label, color=f"C{i}")
        panel.set_xticks(range(len(lines)), [f"{line['case']}\n{line['item_bytes'] / 1e3:,.0f} kB" for line in lines])
        panel.set(yscale="log", ylabel=f"items/s: {what}")
        panel.set_ylim(bottom=10)
        panel.legend(fontsize="x-small", ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)
    rows = [
        [line["case"], what, *(f"{line[name]:,}" for name in names), f"{line[f'ratio_{what}']:.2f}"]
        for line in lines
        for what, names in _REVERB
    ]
    columns = [
        "case",
        "",
        "ours, items/s",
        "official: whole, C++ sampler",
        "official: by steps, dataset",
        "ours over the faster",
    ]
    return f"{_save(made, folder, stem, 'items a second')}\n{common.table(columns, rows)}"


# Scaling.


def _scaling(lines: Sequence[Line], folder: Path, stem: str) -> str:
    case = lines[0]["benchmark"].removeprefix("scaling ")
    made, axes = common.figure(2, width=4.8, height=3.6)
    speed, sent = axes[0]
    counts = [line["chips" if case == "chips" else "devices"] for line in lines]
    key = "bound_steps_per_second" if case == "chips" else "agent_steps_per_second"
    label = "bound by published peaks" if case == "chips" else "measured"
    speed.plot(counts, [line[key] for line in lines], "o-", label=label)
    if case != "chips":
        speed.plot(counts, [line["ideal"] for line in lines], "--", color="0.45", label="one device's: shared cores, no loss")
    sent.plot(counts, [line["bytes_reduced"] / 1e6 for line in lines], "o-", label="counted in the program")
    for panel in (speed, sent):
        panel.set_xscale("log", base=2)
        panel.set_xticks(counts, [f"{count}" for count in counts], fontsize="small", rotation=45 if len(counts) > 6 else 0)
        panel.set(xlabel=case)
        panel.legend(fontsize="small")
    speed.set(ylabel="agent steps/s", yscale="log" if case == "chips" else "linear")
    sent.set(ylabel="MB reduced by a device, an update", ylim=(0, 1.3 * max(line["bytes_reduced"] for line in lines) / 1e6))
    if case != "chips":
        speed.set_ylim(bottom=0)
    return f"{_save(made, folder, stem, f'weak scaling over {case}')}\n{_facts(lines, folder, stem)}"


def _facts(lines: Sequence[Line], folder: Path, stem: str) -> str:
    """A table of all that lines say which is not the same in all of them, and a line of the rest."""
    del folder, stem
    names = list(dict.fromkeys(name for line in lines for name in line if name != "benchmark"))
    same = [name for name in names if len(lines) > 1 and all(line.get(name) == lines[0].get(name) for line in lines)]
    told = ", ".join(f"{_words(name)} {_text(lines[0][name])}" for name in same if lines[0].get(name) not in ([], "", None))
    text = _columns(lines, {name: _words(name) for name in names if name not in same})
    return text + (f"\nIn all of them: {told}.\n" if told else "")


def _words(name: str) -> str:
    return name.replace("_", " ")


# Faults.


def _soak(lines: Sequence[Line], folder: Path, stem: str) -> str:
    del folder, stem
    (line,) = lines
    faults = common.table(["what was done to it", "times"], list(line["faults"].items()))
    broken = "; ".join(line["broken"]) or "nothing"
    growth = ", ".join(f"{name} {_text(value)}" for name, value in line["growth"].items())
    return (
        f"{line['seconds']:.0f} s of a Sebulba run over Reverb, with an actor of its own and two actor processes:\n\n{faults}\n"
        f"{line['updates']:,} updates and {line['agent_steps']:,} agent steps. Broken: {broken}. The longest time without an "
        f"update was\n{line['longest_stall_s']} s. Reverb's server was started again {line['server_restarts']} times;\n"
        f"{line['repeated']} repeated unrolls were refused, {line['stale']} discarded as too old, {line['replaced']} tickets "
        f"replaced.\nGrowth: {growth}.\n"
    )


def _cluster(lines: Sequence[Line], folder: Path, stem: str) -> str:
    del folder, stem
    (line,) = lines
    rows = []
    for kind, kills in line["kills"].items():
        seconds, lost = ([one[name] for one in kills] for name in ("seconds", "updates_lost"))
        rows.append([kind, len(kills), _text(seconds), _text(lost)])
    columns = ["SIGKILL to", "went on after", "seconds until it did", "updates made again"]
    return (
        f"`podracer {' '.join(line['job'])}`:\n\n{common.table(columns, rows)}\n"
        f"Exit code {line['exit_code']}, evaluation {_text(line['eval_return_mean'])}, processes left: "
        f"{line['processes_left']},\ngenerations: {line['generations']}; {line['num_agent_steps'] or 0:,} agent steps in "
        f"{line['seconds']:,} s.\n"
    )


_SHOWS: Mapping[str, Callable[[Sequence[Line], Path, str], str]] = {
    "learning": _curves,
    "cca": _curves,
    "himo": _curves,
    "muesli": _curves,
    "nav": _curves,
    "anakin": _parts,
    "sebulba": _parts,
    "search": _search,
    "host_environments": _bars,
    "nav_render": _bars,
    "anakin against PureJaxRL PPO": _peer,
    "sebulba against Sample Factory APPO": _peer,
    "reverb": _reverb,
    "scaling devices": _scaling,
    "scaling processes": _scaling,
    "scaling chips": _scaling,
    "soak": _soak,
    "cluster_faults": _cluster,
}


def _save(made: Any, folder: Path, stem: str, alt: str) -> str:
    made.savefig(folder / f"{stem}.png", dpi=90)
    with Image.open(folder / f"{stem}.png") as picture:
        picture.convert("RGB").quantize(64, dither=Image.Dither.NONE).save(folder / f"{stem}.png", optimize=True)
    return f"![{alt}]({stem}.png)\n"


# Goals that were missed.


def _goals(folder: Path, found: Mapping[str, Any]) -> str:
    """What goals.toml says, with the figures that sections measured, or that a named command gave."""
    rows = []
    for goal in tomllib.loads((folder / "goals.toml").read_text())["goal"]:
        measured, command = goal.get("said", ""), f"`{goal['command']}`" if "command" in goal else ""
        if "section" in goal and (taken := _measured(goal, found.get(goal["section"]))):
            measured, command = taken
        rows.append([goal["goal"], measured or "not measured", command, goal["reason"]])
    return _GOALS + common.table(["goal", "measured", "by", "why"], rows)


def _measured(goal: Line, data: Line | None) -> tuple[str, str] | None:
    """Figure and command of the line that `where` picks; `field` may go into it by dots."""
    if data is None:
        return None
    for run in data["runs"]:
        for line in run["lines"]:
            if all(line.get(key) == value for key, value in goal["where"].items()):
                texts = []
                for field in goal["fields"]:
                    value: Any = line
                    for key in field.split("."):
                        value = value[int(key)] if isinstance(value, list) else value[key]
                    texts.append(_text(value))
                return goal["form"].format(*texts), f"`{run['command']}`"
    return None
