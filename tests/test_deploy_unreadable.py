"""A site leaves out pictures that it cannot read: how many is told, which ones stays in its log."""

from __future__ import annotations

from fedprompt.deploy.settings import SITE, SiteFile, save
from fedprompt.deploy.site import Site
from fedprompt.runtimes.payload import HELLO, Payload
from trees import picture

RECIPE = """
name = "job"
[data]
source = "sites"
classes = ["a", "b"]
unreadable = 0.5
[partition]
rule = "by_site"
sites = ["east", "north"]
[method]
name = "promptfl"
"""


def test_a_site_tells_how_many_it_cannot_read_and_keeps_the_names(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("fedprompt.deploy.preflight.versions", dict)
    for name in "ab":
        for number in range(20):
            picture(tmp_path / f"pictures/train/{name}/{number}.png")
        picture(tmp_path / f"pictures/test/{name}/0.png")
    fields = {"recipe": RECIPE, "run": "", "trial": "promptfl", "client": 0}
    for bad, told, held in ((0, 0, 40), (3, 0, 35), (8, 5, 30), (25, "refused", 0)):
        for number in range(bad):
            (tmp_path / f"pictures/train/{'ab'[number % 2]}/{number // 2}.png").write_bytes(b"")
        save(tmp_path / SITE, SiteFile(name="east", superlink="h:1", data=str(tmp_path / "pictures"), device="cpu"))
        caplog.clear()
        answer = Site(tmp_path).answer(Payload(HELLO, {**fields, "run": f"{bad:032x}"}))
        if told == "refused":
            assert answer.kind == "refused" and "png" not in str(answer.fields) and "25 of the 40" in caplog.text
        else:
            assert answer.kind == "done", answer.fields
            assert answer.fields["unreadable"] == told and answer.fields["images"] == held
            assert caplog.text.count("Left out") == bad and "png" not in str(answer.fields)


def test_a_run_leaves_out_the_same_pictures_whatever_happens_to_their_files(tmp_path, monkeypatch):
    monkeypatch.setattr("fedprompt.deploy.preflight.versions", dict)
    for name in "ab":
        for number in range(20):
            picture(tmp_path / f"pictures/train/{name}/{number}.png")
        picture(tmp_path / f"pictures/test/{name}/0.png")
    bad = tmp_path / "pictures/train/a/3.png"
    bad.write_bytes(b"")
    save(tmp_path / SITE, SiteFile(name="east", superlink="h:1", data=str(tmp_path / "pictures"), device="cpu"))

    def images(run: str) -> int:  # a worker that was started again
        fields = {"recipe": RECIPE, "run": run * 32, "trial": "promptfl", "client": 0}
        return Site(tmp_path).answer(Payload(HELLO, fields)).fields["images"]

    assert images("1") == 35
    picture(bad)
    assert images("1") == 35 and images("2") == 40
