"""The report is a pure function of run.jsonl: complete, self-contained, deterministic, and safe whatever names hold."""

from __future__ import annotations

import base64
import io
import json
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable
from html import unescape
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from statistics import fmean, harmonic_mean
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fedprompt.errors import UserError
from fedprompt.records.event_fields import PartitionCounts
from fedprompt.report import headline_figure, partition_figure, read_run, render, save_headline
from fedprompt.report.client_figures import participation_figure
from fedprompt.report.facts import status, summary
from fedprompt.report.legend import legend
from fedprompt.report.page import page
from fedprompt.report.sample_images import heat_overlay, png_data_url
from fedprompt.report.style import separate, size_text
from fedprompt.report.tables import client_rows, headline_rows, selection_rows

Event = dict[str, Any]

CLASSES, NEW = ["cat", "dog", "car", "bus"], ["horse", "tree"]
FIGURES = {"zero": (0.70, 0.60, 0.50), "rival": (0.80, 0.62, 0.44), "ours": (0.85, 0.66, 0.58)}  # local, base, new


def picture(colour: str = "teal") -> str:
    file = io.BytesIO()
    Image.new("RGB", (16, 16), colour).save(file, format="PNG")
    return base64.b64encode(file.getvalue()).decode()


def header(**changes: Any) -> Event:
    return {
        "event": "header",
        "time": "2026-11-21T05:35:09Z",
        "seed": 3,
        "main": "ours",
        "recipe": {"train": {"rounds": 3}, "compare": [{"name": "rival"}]},
        "versions": {"fedprompt": "0.1.0"},
        "backbone": {"name": "demo", "fingerprint": "b4ckb0ne"},
        "data": {"name": "drawings", "fingerprint": "d4t4", "base": CLASSES, "new": NEW},
        "protocol": "Two clients.\n\nScores are of the global model.",
        "splits": {"local": "own classes only", "base": "all base classes"},
        "partition": {
            "rule": "class_chunks",
            "clients": ["north", "south"],
            "classes": CLASSES,
            "counts": [[8, 8, 0, 0], [0, 0, 8, 6]],
        },
    } | changes


def score(trial: str, number: int, split: str, value: float | None, **more: Any) -> Event:
    figures = {"accuracy": value}
    return {"event": "score", "trial": trial, "round": number, "split": split, "figures": figures} | more


def trial_events(name: str, *, rounds: int = 3) -> list[Event]:
    """Everything one trial of two clients records; `zero` trains nothing."""
    rounds = 0 if name == "zero" else rounds
    local, base, new = FIGURES[name]
    attention = {"grid": [2, 2], "total": 4, "attributes": [{"name": "four legs", "weights": [0.1, 0.2, 0.3, 0.7]}]}
    sample = {"event": "sample", "trial": name, "sample": "0", "truth": ["cat"], "top": [["cat", 0.9], ["dog", 0.1]]}
    about = {"method": name, "trainable": 10 * rounds, "rounds": rounds, "options": {"tokens": 4}}
    return [
        {"event": "trial", "trial": name, "status": "running", "idea": f"{name.title()} (Someone, 2020): it.", **about},
        *(
            {"event": "round", "trial": name, "round": number, "clients": [0, 1], "loss": 1 / number}
            | {"bytes_up": {"0": 4000 // number, "1": 4000}}
            for number in range(1, rounds + 1)
        ),
        score(name, rounds, "local", local + 0.05, client=0),
        score(name, rounds, "local", local - 0.05, client=1),
        score(name, 0, "base", 0.5),
        score(name, rounds, "base", base, classes=CLASSES, per_class=[base, 0.9, None, 0.1]),
        score(name, rounds, "new", new, classes=NEW, per_class=[new, 0.2]),
        *(score(name, rounds, "unseen", value, name=word) for word, value in (("sketch", 0.3), ("clay", 0.5))),
        {**sample, "picture": picture()} if name == "ours" else sample,
        {**sample, "sample": "1", "truth": ["dog", "car"], "picture": picture("red"), "attention": attention},
        {"event": "trial", "trial": name, "status": "done", "seconds": 1.5},
    ]


def whole_run(**changes: Any) -> list[Event]:
    trials = [event for name in ("ours", "zero", "rival") for event in trial_events(name)]
    return [header(**changes), *trials, {"event": "end", "status": "done", "seconds": 5}]


def write(folder: Path, events: Iterable[Event]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("run"), whole_run())


@pytest.fixture(scope="module")
def html(folder: Path) -> str:
    return render(folder).read_text(encoding="utf-8")


class Reader(HTMLParser):
    """Collects what a browser would meet: tags, attributes, ids and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def assert_self_contained(html: str) -> None:
    reader = Reader(html)
    assert not {"script", "link", "iframe", "object", "embed", "base", "form"} & set(reader.tags)
    assert not [name for name, _ in reader.attributes if name.startswith("on")]
    links = [
        value
        for name, value in reader.attributes
        if name in {"src", "href", "xlink:href", "srcset", "action", "poster"}
    ]
    assert links and all(link.startswith(("#", "data:image/png;base64,")) for link in links)
    assert all(
        address.strip("\"'").startswith(("#", "data:image/png;base64,"))
        for address in re.findall(r"url\(([^)]*)\)", html)
    )
    assert "@import" not in html


def test_the_records_alone_give_the_same_bytes_again(folder: Path, html: str, tmp_path: Path) -> None:
    (tmp_path / "run.jsonl").write_bytes((folder / "run.jsonl").read_bytes())
    assert render(tmp_path) == tmp_path / "report.html"
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == html
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "run.jsonl"]


def test_everything_recorded_is_on_the_page(html: str) -> None:
    text = Reader(html).text
    for section in ("Results", "Training", "Clients", "Classes", "Images", "Attention", "Protocol", "Set-up"):
        assert f" {section} " in text
    for word in (
        "Ours on drawings",
        "north",
        "four legs",
        "0.4 to 2.8 \N{MULTIPLICATION SIGN}",
        "b4ckb0ne",
        "d4t4",
        "own classes only",
        "sketch",
        "dog + car",
    ):
        assert word in text, word
    assert "first round 4.0 kB, last 2.7 kB" in text.replace("\N{NO-BREAK SPACE}", " ")
    assert text.count("This run") == 0  # no banner on a finished run


def test_the_page_fetches_nothing_and_ids_do_not_clash(html: str) -> None:
    assert_self_contained(html)
    ids = [value for name, value in Reader(html).attributes if name == "id"]
    assert len(ids) == len(set(ids))
    targets = set(re.findall(r'href="#([^"]+)"', html)) | set(re.findall(r"url\(#([^)]+)\)", html))
    assert targets <= set(ids)


@pytest.mark.parametrize(
    "nasty",
    [
        "</text></svg><script>alert(1)</script>",
        '"><img src=http://x onerror=alert(1)>',
        "$\\frac{1}$ {{ 7*7 }} </style>",
    ],
)
def test_names_from_clients_are_only_ever_text(nasty: str, tmp_path: Path) -> None:
    def poison(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: poison(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [poison(inner) for inner in value]
        return nasty if value in {"north", "cat", "four legs", "sketch", "demo", "drawings", "0.1.0"} else value

    events = [poison(event) for event in whole_run(title=nasty, protocol=nasty, splits={"local": nasty})]
    events = [
        {**event, "idea": f"{nasty} (2020)", "options": {nasty: nasty}} if event["event"] == "trial" else event
        for event in events
    ]
    events[-1] = {"event": "end", "status": "failed", "message": nasty}
    html = render(write(tmp_path, events)).read_text(encoding="utf-8")
    assert_self_contained(html)
    assert nasty in "".join(Reader(html).words)


def test_figures_are_unweighted_means_of_the_last_scores(folder: Path) -> None:
    run = read_run(folder)
    ours = next(trial for trial in run.trials if trial.name == "ours")
    assert run.columns == ("local", "base", "new", "hm", "unseen")
    assert [trial.name for trial in run.trials] == ["zero", "rival", "ours"]
    assert run.main is ours and run.reference is run.trials[0]
    local, base, new = FIGURES["ours"]
    assert ours.figures == pytest.approx(
        {"local": local, "base": base, "new": new, "unseen": 0.4, "hm": harmonic_mean([local, base, new])}
    )
    assert ours.label == "Ours" and ours.bytes_up == pytest.approx(fmean([4000, 2000, 1333, 4000, 4000, 4000]))


@settings(max_examples=30)
@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 4), st.one_of(st.none(), st.floats(0, 1))), min_size=1, max_size=20
    )
)
def test_a_later_line_replaces_an_earlier_one(
    tmp_path_factory: pytest.TempPathFactory, lines: list[tuple[int, int, float | None]]
) -> None:
    events = [score("t", number, "local", value, client=client) for number, client, value in lines]
    run = read_run(write(tmp_path_factory.mktemp("run"), [header(), *events]))
    last = {client: value for number, client, value in lines if number == max(line[0] for line in lines)}
    known = [value for value in last.values() if value is not None]
    assert run.trials[0].figures == (pytest.approx({"local": fmean(known)}) if known else {})


def test_the_time_of_a_resumed_run_is_the_sum_of_its_sessions(tmp_path: Path) -> None:
    whole = whole_run()
    stopped = {"event": "end", "status": "interrupted", "seconds": 7}
    html = render(write(tmp_path, [*whole[:3], stopped, *whole[3:]])).read_text(encoding="utf-8")
    assert "12.0 s in 2 sessions" in html
    assert "<dt>whole run</dt><dd>5.0 s</dd>" in render(write(tmp_path, whole)).read_text(encoding="utf-8")


def test_settings_without_effect_are_hidden_and_values_are_spelled_as_in_a_recipe(tmp_path: Path) -> None:
    events = whole_run()
    used = {"optimizer": "adamw", "lr": 0.001, "momentum": 0.9, "proximal": 0.0, "privacy": None}
    for event in events:
        if event.get("status") == "running":
            event |= {"settings": used, "options": {"lora": True, "flip": "image"}}
    html = unescape(render(write(tmp_path, events)).read_text(encoding="utf-8"))
    assert html.count('optimizer = "adamw", lr = 0.001</span>') == 2, "the two methods that train"
    assert "momentum" not in html and "proximal" not in html
    assert html.count('lora = true, flip = "image"') == 3


def test_a_table_of_several_methods_and_one_seed_says_how_much_that_is_worth(html: str, tmp_path: Path) -> None:
    assert "This is one seed, and no interval says which differences are more than noise" in html
    alone = [event for event in whole_run() if event.get("trial", "ours") == "ours"]
    assert "This is one seed" not in render(write(tmp_path, alone)).read_text(encoding="utf-8")


def test_the_legend_explains_the_harmonic_mean_and_changing_uploads(folder: Path) -> None:
    meanings = dict(legend(read_run(folder)))
    assert meanings["HM"] == "harmonic mean of Local, Base and New" and meanings["Local"] == "own classes only"
    said = meanings["Upload"].replace("\N{NO-BREAK SPACE}", " ")
    assert "Ours sends 3.2 kB (first round 4.0 kB, last 2.7 kB): a method may send other tensors in later" in said


def test_fingerprints_are_shown_once_and_short(tmp_path: Path) -> None:
    long = "0123456789abcdef" * 4
    data = {"name": "drawings", "fingerprint": long, "base": CLASSES, "new": NEW}
    html = render(write(tmp_path, whole_run(data=data))).read_text(encoding="utf-8")
    assert html.count(long[:12]) == 1 and long[:13] not in html


def test_headline_rows_show_change_and_best(folder: Path) -> None:
    rows = {row.name: row for row in headline_rows(read_run(folder))}
    assert [cell.text for cell in rows["Zero"].cells] == ["70.0", "60.0", "50.0", "58.9", "40.0"]
    assert [cell.change for cell in rows["Rival"].cells][:3] == ["+10.0", "+2.0", "\N{MINUS SIGN}6.0"]
    assert [cell.best for cell in rows["Ours"].cells] == [True, True, True, True, False]  # all are alike on unseen
    assert not any(cell.best for cell in rows["Rival"].cells)


def test_selected_and_all_clients_are_both_named(tmp_path: Path) -> None:
    events = whole_run()
    run = read_run(write(tmp_path, events))
    assert selection_rows(run) == []  # everyone took part in every round: there is one figure only
    for event in events:
        if event["event"] == "round" and event["trial"] != "zero":
            event["clients"] = [1]
    rows = selection_rows(read_run(write(tmp_path, events)))
    assert [(row.name, row.texts, row.cells[2].text) for row in rows] == [
        ("all clients", ("2",), "85.0"),
        ("clients selected in the last round", ("1",), "80.0"),
        ("clients never selected", ("1",), "90.0"),
    ]
    assert [cell.text for cell in client_rows(run)[0].cells] == ["75.0", "85.0", "90.0"]


def test_an_interrupted_run_says_so_at_its_top(tmp_path: Path) -> None:
    events = [header(), *trial_events("zero"), *trial_events("ours")[:2]]
    write(tmp_path, events)
    with (tmp_path / "run.jsonl").open("a") as file:
        file.write('{"event": "round", "trial": "ou')
    html = render(tmp_path).read_text(encoding="utf-8")
    sentence = "This run has not ended after round 1 of 3 of Ours: it is still going on, or was stopped from outside."
    assert sentence in html and html.index(sentence) < html.index("<nav")
    run = read_run(write(tmp_path, [*events, {"event": "end", "status": "interrupted"}]))
    assert status(run) == "This run was interrupted after round 1 of 3 of Ours."
    assert summary(run).startswith("2 clients trained Ours together for 1 round without")
    resumed = read_run(
        write(
            tmp_path,
            [*events, {"event": "end", "status": "interrupted"}, {"event": "resume", "trial": "ours", "round": 1}],
        )
    )
    assert resumed.end is None and resumed.resumed == (1,)


def odd_values(event: Event) -> Event:
    odd = {
        "clients": "none",
        "bytes_up": [1],
        "per_class": {"a": 1},
        "picture": "none",
        "attention": {"grid": [9, 9]},
        "partition": 7,
    }
    return {key: odd.get(key, value) for key, value in event.items()}


INCOMPLETE = {
    "only a header": [{"event": "header"}],
    "odd values": [*(odd_values(event) for event in whole_run()), {"event": "news"}, {"event": "score"}],
    **{f"no {kind}": [e for e in whole_run() if e["event"] != kind] for kind in ("trial", "round", "score", "sample")},
}


@pytest.mark.parametrize("missing", INCOMPLETE)
def test_what_is_missing_is_left_out(missing: str, tmp_path: Path) -> None:
    html = render(write(tmp_path, INCOMPLETE[missing])).read_text(encoding="utf-8")
    assert_self_contained(html)
    assert html.rstrip().endswith("</html>") and ">None<" not in html


def test_a_folder_without_records_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=re.escape(str(tmp_path))):
        render(tmp_path)
    with pytest.raises(UserError, match="no header line"):
        render(write(tmp_path, trial_events("zero")))
    assert not (tmp_path / "report.html").exists()


def svg_words(svg: str) -> list[str]:
    return [node.text or "" for node in ElementTree.fromstring(svg.encode()).iter() if node.tag.endswith("}text")]


@settings(max_examples=8)
@given(st.data())
def test_partition_figure_names_every_holder_and_total(data: st.DataObject) -> None:
    clients, classes = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 5))
    counts = data.draw(
        st.lists(st.lists(st.integers(0, 99), min_size=classes, max_size=classes), min_size=clients, max_size=clients)
    )
    names, labels = [f"<site {row}>" for row in range(clients)], [f"$class {column}$" for column in range(classes)]
    words = svg_words(partition_figure(PartitionCounts(clients=names, classes=labels, counts=counts)))
    assert set(names) | {str(sum(row)) for row in counts} <= set(words)
    held = {labels[column] for column in range(classes) if any(row[column] for row in counts)}
    assert {word for word in words if word.startswith("$")} == (held or set(labels))


def test_participation_shows_planned_rounds_and_failures(tmp_path: Path) -> None:
    events = [header(), *trial_events("ours")[:3]]
    events[-1]["failed"] = {"1": "no answer for 30 s"}
    run = read_run(write(tmp_path, events))
    drawn = participation_figure(run, run.trials[0])
    assert drawn is not None and {"north", "south", "1", "2", "3", "Ours"} <= set(svg_words(drawn.svg))
    assert "no answer for 30 s" in page(run)


def test_headline_figure_stands_alone_and_is_saved_as_asked(folder: Path, tmp_path: Path) -> None:
    run = read_run(folder)
    assert {"Local", "HM", "Zero", "Ours", "85.0"} <= set(svg_words(headline_figure(run)))
    save_headline(run, tmp_path / "figure.png")
    save_headline(run, tmp_path / "figure.svg")
    with Image.open(tmp_path / "figure.png") as image:
        assert image.format == "PNG" and image.width > 1000
    assert b"<svg" in (tmp_path / "figure.svg").read_bytes()


@given(st.lists(st.floats(0.2, 0.8), min_size=2, max_size=5))
def test_separated_labels_keep_their_order_and_distance(positions: list[float]) -> None:
    moved = separate(positions, 0.05)
    ordered = [moved[place] for place in sorted(range(len(positions)), key=lambda place: positions[place])]
    assert all(high - low > 0.045 for low, high in pairwise(ordered))


def test_heat_is_strongest_where_attention_is() -> None:
    address = heat_overlay([0.5, 0.5, 1.0, 2.4, 1.1, 0.5], (2, 3), 3.0)
    with Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))) as image:
        alpha = image.getchannel("A").resize((3, 2), Image.Resampling.BOX)
    assert alpha.width == 3 and max(range(6), key=lambda place: alpha.getpixel((place % 3, place // 3))) == 3
    with Image.open(io.BytesIO(base64.b64decode(heat_overlay([0.9] * 4, (2, 2), 0.9).partition(",")[2]))) as flat:
        assert flat.getchannel("A").getextrema() == (0, 0)


@pytest.mark.parametrize(
    "wrong", ["", "no base64!", base64.b64encode(b"<svg onload=alert(1)>").decode(), picture() + ") url(http://x"]
)
def test_only_a_png_becomes_a_picture(wrong: str) -> None:
    assert png_data_url(wrong) == ""
    assert png_data_url(picture()).startswith("data:image/png;base64,")


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (18432, "18 kB"), (999_600, "1.0 MB"), (3.2e9, "3.2 GB")],
)
def test_sizes_are_for_people(count: float, text: str) -> None:
    assert size_text(count).replace("\N{NO-BREAK SPACE}", " ") == text
