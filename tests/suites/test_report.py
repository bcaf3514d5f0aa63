"""The report is one file, and every number in it leads to its runs."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from clsp_plugin.engine.pretrain import pretrain
from clsp_plugin.errors import ClspError
from clsp_plugin.figures.picture import Options
from clsp_plugin.records.record import Record, add_evaluation, find_records
from clsp_plugin.suites.report import write_report


class Page(HTMLParser):
    """Ids, links and sources; and whether every element is closed."""

    def __init__(self, text):
        super().__init__()
        self.ids, self.links, self.sources, self.open = [], [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.ids += [given["id"]] if "id" in given else []
        self.links += [given["href"]] if "href" in given else []
        self.sources += [given["src"]] if "src" in given else []
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def evaluation(top1, protocol="strict"):
    return {"task": "linear", "protocol": protocol, "dataset": "digits", "epoch": 2, "top1": top1,
            "top5": 90.0, "chosen": {"lr": 1.0}, "num_train": 48, "num_test": 20,
            "settings": {}}  # fmt: skip


def run(method="simclr", seed=0, **more):
    fields = {"dataset": "digits", "backbone": "resnet18", "epochs": 2, "num_train": 48,
              "checkpoint": None, "config": {"method": method, "name": "<b>&"},
              "evaluations": [evaluation(50.0 + seed)]}  # fmt: skip
    return Path(f"{method}-{seed}"), Record(method=method, seed=seed, **fields | more)


def written(records, path, **options):
    write_report(records, path, Options(**options))
    text = path.read_text()
    return Page(text), text


def test_a_cell_leads_to_its_runs(tmp_path):
    records = [run(seed=s) for s in (0, 1)] + [run("byol")]
    page, text = written(records, tmp_path / "new/report.html")
    runs = [f"run-{number}" for number in (1, 2, 3)]
    assert [name for name in page.ids if name.startswith("run-")] != []
    assert sorted(name for name in page.ids if name.startswith("run-")) == runs
    assert len(set(page.ids)) == len(page.ids)
    for link in page.links:
        assert link.startswith("#")
        assert link[1:] in page.ids
    assert set(page.links) >= {f"#{name}" for name in runs}
    (cell,) = re.findall(r'<a href="#(run-\d)">50.5 ± 0.7</a>', text)
    assert re.search(rf'id="{cell}"><strong>simclr, seed 0<', text)
    assert "&lt;b&gt;&amp;" in text  # configurations are text
    assert "<b>" not in text


def test_it_needs_nothing_else(tmp_path, tiny, store):
    finished = pretrain(tiny("clsp_simclr", f"synthetic.path={store}", "max_epochs=1"))
    add_evaluation(finished.record, {**evaluation(50.0), "epoch": 1})
    records = find_records([finished.record])
    page, text = written(records, tmp_path / "report.html", limit=20)
    assert len(page.sources) >= 4  # curves, similarity, t-SNE, neighbours, a sheet
    assert all(source.startswith("data:image/") for source in page.sources)
    assert not re.search(r"https?://|@import|url\(", text)
    assert "Anchors and their candidates" in text
    assert "checkpoint.keep_prev=True" in text  # what is not drawn, and what it needs
    assert "proj_hidden_dim: 16" in text
    assert records[0][1].versions["torch"] in text


def test_recipes_are_rows_of_their_own(tmp_path):
    settings = [{"synthetic": {"weight": weight}} for weight in (1.0, 0.2)]
    changed = [run("clsp_simclr", seed, config=c) for seed, c in enumerate(settings)]
    _, text = written(changed, tmp_path / "a.html")
    assert "<th>λ</th>" in text
    assert text.index("<td>0.2</td>") < text.index("<td>1.0</td>")


def test_what_is_wrong_with_records_is_flagged(tmp_path):
    twice = [run(), (Path("copy"), run()[1])]
    _, text = written(twice, tmp_path / "a.html")
    assert 'class="flag">No table: simclr-0 and copy are both' in text
    _, text = written([run(evaluations=[])], tmp_path / "b.html")
    assert "No run was evaluated" in text
    both = run(evaluations=[evaluation(1.0), evaluation(2.0, "paper")])
    _, text = written([both], tmp_path / "c.html")
    assert text.index("protocol strict</h3>") < text.index("protocol paper</h3>")


def test_only_a_report_is_replaced(tmp_path):
    path = tmp_path / "report.html"
    written([run()], path)
    written([run("byol")], path)
    path.write_text("mine")
    with pytest.raises(ClspError, match="no report of ours"):
        write_report([run()], path, Options())
    assert path.read_text() == "mine"
