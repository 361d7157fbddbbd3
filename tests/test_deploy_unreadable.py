"""A site leaves out unreadable images: it reports how many, and only its own log lists them."""

from __future__ import annotations

import fedprompt
from fedprompt.deploy.settings import SITE, OwnImagesTable, SiteFile, save
from fedprompt.deploy.site import Site
from fedprompt.runtimes.payload import HELLO, VERSION, Payload
from trees import picture

SAME = {VERSION: fedprompt.__version__}  # a server with the site's version
RECIPE = """
name = "job"
[data]
source = "sites"
classes = ["a", "b"]
unreadable = 0.05
[partition]
rule = "by_site"
sites = ["east", "north"]
[method]
name = "promptfl"
"""


def test_a_site_reports_the_number_of_unreadable_images_without_their_names(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("fedprompt.deploy.preflight.versions", dict)
    for name in "ab":
        for number in range(20):
            picture(tmp_path / f"images/train/{name}/{number}.png")
        picture(tmp_path / f"images/test/{name}/0.png")
    fields = {"recipe": RECIPE, "run": "", "trial": "promptfl", "client": 0, "serial": [1, 1], **SAME}
    for bad, reported, kept in ((0, 0, 40), (3, 0, 35), (8, 5, 30), (25, "refused", 0)):
        for number in range(bad):
            (tmp_path / f"images/train/{'ab'[number % 2]}/{number // 2}.png").write_bytes(b"")
        own = OwnImagesTable(unreadable=0.5)  # whatever the job says
        save(
            tmp_path / SITE,
            SiteFile(name="east", superlink="h:1", data=str(tmp_path / "images"), device="cpu", images=own),
        )
        caplog.clear()
        answer = Site(tmp_path).answer(Payload(HELLO, {**fields, "run": f"{bad:032x}"}))
        if reported == "refused":
            assert answer.kind == "refused" and "png" not in str(answer.fields) and "25 of the 40" in caplog.text
        else:
            assert answer.kind == "done", answer.fields
            assert answer.fields["unreadable"] == reported and answer.fields["images"] == kept
            assert caplog.text.count("Left out") == bad and "png" not in str(answer.fields)


def test_a_run_leaves_out_the_same_images_whatever_happens_to_their_files(tmp_path, monkeypatch):
    monkeypatch.setattr("fedprompt.deploy.preflight.versions", dict)
    for name in "ab":
        for number in range(20):
            picture(tmp_path / f"images/train/{name}/{number}.png")
        picture(tmp_path / f"images/test/{name}/0.png")
    bad = tmp_path / "images/train/a/3.png"
    bad.write_bytes(b"")
    save(tmp_path / SITE, SiteFile(name="east", superlink="h:1", data=str(tmp_path / "images"), device="cpu"))

    def images(run: str, *serial: int) -> int:  # a worker that was started again
        fields = {"recipe": RECIPE, "run": run * 32, "trial": "promptfl", "client": 0, "serial": [*serial], **SAME}
        return Site(tmp_path).answer(Payload(HELLO, fields)).fields["images"]

    assert images("1", 1, 1) == 35
    picture(bad)
    assert images("1", 1, 2) == 35 and images("2", 1, 1) == 40
