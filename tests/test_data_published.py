from __future__ import annotations

import os
import shutil
import string

import pytest
import torch

from fedprompt.data import folder as folders
from fedprompt.data.published.catalog import catalog, entry, list_images
from fedprompt.data.published.layouts.split_json import draw
from fedprompt.data.published.verify import verify
from fedprompt.data.sources.published import published
from fedprompt.errors import UserError
from trees import DOMAINNET, TREES, as_json, domains, picture, stanford_cars, terra_raw, text, xml

TWENTY_SIX = 26
ZERO_SHOT = {"coco_zero_shot", "nuswide_zero_shot"}
NATIVE = (
    "caltech101",
    "oxford_pets",
    "oxford_flowers",
    "dtd",
    "eurosat",
    "stanford_cars",
    "food101",
    "sun397",
    "ucf101",
)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDPROMPT_CACHE", str(tmp_path / "cache"))


def listing(name, root, **options):
    return list_images(name, root, options)[1]


def by_file(found) -> dict[str, object]:
    return dict(zip(found.files, found.targets.tolist(), strict=True))


def test_the_table_has_the_26_sets_and_a_miniature_of_each():
    assert len(catalog().keys() - ZERO_SHOT) == TWENTY_SIX
    assert catalog().keys() == TREES.keys()


@pytest.mark.parametrize("name", TREES)
def test_every_set_reads_its_layout(name, tmp_path, monkeypatch):
    TREES[name](tmp_path)
    data = published(name=name, root=tmp_path, base="all")
    assert len(set(data.source.files)) == len(data.source.files) or name == "terraincognita"
    assert data.space.kind == entry(name).kind == ("multi" if data.targets.ndim > 1 else "single")
    if data.space.kind == "single":
        assert int(data.targets.min()) >= 0 and int(data.targets.max()) < len(data.space)
    else:
        assert data.targets.shape == (len(data.source), len(data.space)) and data.targets.dtype == torch.int8
    assert data.source.open(0).mode == "RGB"
    looked = verify(name, tmp_path)
    assert (looked.classes, sum(looked.splits.values())) == (len(data.space), len(data.source)) and looked.problems
    assert any(word.startswith("t") or word == "zsl" for word in data.splits)
    # The order in which a disk lists its folders changes nothing.
    scan = os.scandir
    monkeypatch.setattr(folders.os, "scandir", lambda place: _Backwards(scan(place)))
    again = published(name=name, root=tmp_path, base="all")
    assert list(again.source.files) == list(data.source.files) and torch.equal(again.targets, data.targets)
    assert again.splits == data.splits


class _Backwards:
    def __init__(self, entries):
        self.entries = entries

    def __enter__(self):
        return reversed(list(self.entries))

    def __exit__(self, *_):
        self.entries.close()


@pytest.mark.parametrize("name", TREES)
def test_a_set_that_is_not_there_says_where_it_comes_from(name, tmp_path):
    about = entry(name)
    with pytest.raises(UserError) as error:
        published(name=name, root=tmp_path)
    for part in (about.title, about.origin, about.licence, about.tree.splitlines()[0], str(tmp_path)):
        assert part in str(error.value)


@pytest.mark.parametrize("name", sorted(set(TREES) - ZERO_SHOT - {"voc2007"}))
def test_a_lost_image_is_refused_or_left_out(name, tmp_path):
    TREES[name](tmp_path)
    path, found, _ = list_images(name, tmp_path, {})
    lost = found.files[-1]
    (path / lost).unlink()
    if found.files_exist:  # it was never listed
        assert len(listing(name, tmp_path).files) == len(found.files) - 1
        return
    with pytest.raises(UserError, match=r"1 of \d+ listed images are not in"):
        published(name=name, root=tmp_path)
    data = published(name=name, root=tmp_path, missing="skip", base="all")
    assert lost not in data.source.files and any("left out" in note.lower() for note in data.intake.warnings)


@pytest.mark.parametrize("name", NATIVE)
def test_a_split_of_our_own_has_the_published_classes_and_says_that_it_is_ours(name, tmp_path):
    TREES[name](tmp_path)
    published, path = listing(name, tmp_path), list_images(name, tmp_path, {})[0]
    (path / entry(name).options["split"]).unlink()
    with pytest.raises(UserError, match="make_split = true"):
        listing(name, tmp_path)
    ours = listing(name, tmp_path, make_split=True)
    assert ours.names == published.names and "no published figure" in ours.notes[0]
    mine = by_file(ours)
    assert all(mine[file] == label for file, label in by_file(published).items())
    assert {"train", "test"} <= set(ours.splits)
    assert listing(name, tmp_path, make_split=True).splits == ours.splits


def test_caltech_sorts_before_it_renames(tmp_path):
    TREES["caltech101"](tmp_path)
    found = listing("caltech101", tmp_path, make_split=True)
    assert found.names == ("face", "leopard", "accordion", "airplane")
    assert not [file for file in found.files if "easy" in file or "BACKGROUND" in file]


def test_names_keep_their_quirks(tmp_path):
    for name in ("sun397", "ucf101", "stanford_cars", "food101", "fgvc_aircraft"):
        TREES[name](tmp_path)
    assert listing("sun397", tmp_path).names == ("abbey", "outdoor apartment_building", "bar")
    assert listing("ucf101", tmp_path).names == ("Hammering", "Hammer_Throw", "Handstand_Pushups")
    assert "v_HandStandPushups" in listing("ucf101", tmp_path).files[4]
    assert listing("stanford_cars", tmp_path).names == ("2000 AM General Hummer SUV", "2012 Ram C/V Cargo Van Minivan")
    assert listing("food101", tmp_path).names[1:] == ("cheese_plate", "cheesecake")
    assert listing("fgvc_aircraft", tmp_path).names == ("707-320", "F-16A/B", "Cessna 172")


@pytest.mark.parametrize(("level", "file", "names"), [("family", "families", 2), ("manufacturer", "manufacturers", 1)])
def test_families_and_manufacturers_of_aircraft_are_other_tasks(level, file, names, tmp_path):
    TREES["fgvc_aircraft"](tmp_path)
    folder = tmp_path / "fgvc_aircraft"
    own = ["A", "B/C D"][:names]
    text(folder / f"{file}.txt", own)
    for word in ("train", "val", "test"):
        lines = (folder / f"images_variant_{word}.txt").read_text().splitlines()
        text(folder / f"images_{level}_{word}.txt", [f"{line[:7]} {own[-1]}" for line in lines])
    found = listing("fgvc_aircraft", tmp_path, level=level)
    assert found.names == tuple(own) and set(found.targets.tolist()) == {names - 1}


def test_annotations_of_one_row_are_still_a_row(tmp_path):
    stanford_cars(tmp_path, rows=1)
    assert len(listing("stanford_cars", tmp_path, make_split=True).files) == 2


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"train": [["a.jpg", 0, "a"], ["a.jpg", 0, "b"]], "val": [], "test": []}, "two names"),
        ({"train": [["a.jpg", 1, "a"]], "val": [], "test": []}, "label 0"),
        ({"train": [["a.jpg", 0]], "val": [], "test": []}, "is not a split"),
        ({"train": []}, "is not a split"),
        (["train"], "is not a split"),
    ],
)
def test_a_wrong_split_file_is_named(table, message, tmp_path):
    picture(tmp_path / "dtd/images/a.jpg")
    as_json(tmp_path / "dtd/split_zhou_DescribableTextures.json", table)
    with pytest.raises(UserError, match=message):
        listing("dtd", tmp_path)


def test_a_web_page_saved_as_a_split_is_named(tmp_path):
    picture(tmp_path / "dtd/images/a.jpg")
    text(tmp_path / "dtd/split_zhou_DescribableTextures.json", ["<html>"])
    with pytest.raises(UserError, match="web page"):
        listing("dtd", tmp_path)


def test_splits_of_our_own_have_coops_proportions():
    from fedprompt.data.published.layouts.original_lists import OriginalLists

    files = [f"{letter}{number}" for letter in "ab" for number in range(10)]
    found = OriginalLists(("a", "b"), [(file, "ab".index(file[0]), "") for file in files])
    sizes = {word: len(items) for word, items in draw(found, seed=1).items()}
    assert sizes == {"train": 10, "val": 4, "test": 6}
    official = OriginalLists(("a",), [(file, 0, "train" if file != "a9" else "test") for file in files[:10]])
    assert {word: len(items) for word, items in draw(official, seed=1).items()} == {"train": 7, "val": 2, "test": 1}


def test_imagenet_tells_equal_names_apart_in_both_layouts(tmp_path):
    from trees import imagenet

    imagenet(tmp_path, inside="")
    found = listing("imagenet", tmp_path)
    assert found.names == ("tench", "goldfish", "sunglass", "sunglasses")
    assert found.splits.count("test") == 4 and found.targets[-1] == 3
    text(tmp_path / "imagenet/classnames.txt", ["n2 b", "n1 a"])
    with pytest.raises(UserError, match="order of the WordNet ids"):
        listing("imagenet", tmp_path)


def test_a_flat_validation_folder_is_named(tmp_path):
    TREES["imagenet"](tmp_path)
    for path in sorted((tmp_path / "imagenet/images/val").glob("*/*")):
        path.rename(path.parents[1] / f"{path.parent.name}.JPEG")
        path.parent.rmdir()
    with pytest.raises(UserError, match="still flat"):
        listing("imagenet", tmp_path)


def test_folders_called_by_numbers_are_not_sorted_as_text(tmp_path):
    TREES["imagenetv2"](tmp_path)
    assert by_file(listing("imagenetv2", tmp_path)) == {
        f"imagenetv2-matched-frequency-format-val/{label}/a{label}.jpeg": label for label in (0, 1, 2, 10)
    }


@pytest.mark.parametrize("name", ["imagenet_a", "imagenet_r"])
def test_a_subset_has_its_own_candidates(name, tmp_path):
    TREES[name](tmp_path)
    found = listing(name, tmp_path)
    assert found.names == ("tench", "sunglasses") and found.targets.tolist() == [0, 1]


def test_officehome_knows_its_domains_by_any_name_and_sorts_bytewise(tmp_path):
    TREES["officehome"](tmp_path)
    data = published(name="officehome", root=tmp_path, unseen_domains=("real_world",), domain_templates=True)
    assert data.space.names == ("Alarm_Clock", "TV", "Table") and data.new == ()
    assert data.seen_domains == ("art", "clipart", "product")
    assert data.examples(torch.tensor([0]), domain="clipart").space.texts()[0] == "a clipart of a Alarm Clock."


def test_a_missing_domain_is_named(tmp_path):
    domains(tmp_path / "pacs", ("art_painting", "cartoon", "photo"), ("dog",))
    with pytest.raises(UserError, match="no folder for the domain 'sketch'"):
        listing("pacs", tmp_path)


def test_pacs_lists_count_from_one_and_a_bad_entry_goes(tmp_path):
    places = ("art_painting", "cartoon", "photo", "sketch")
    domains(tmp_path / "pacs/images", places, ("dog", "horse"))
    picture(tmp_path / "pacs/images/sketch/dog/n02103406_4068-1.png")
    for place in places:
        for word, number in (("train", 0), ("crossval", 1), ("test", 2)):
            lines = [
                f"{place}/{name}/{place}_{name}_{number}.jpg {label}" for name, label in (("dog", 1), ("horse", 5))
            ]
            lines += ["sketch/dog/n02103406_4068-1.png 1"] if (place, word) == ("sketch", "train") else []
            text(tmp_path / f"pacs/splits/{place}_{word}_kfold.txt", lines)
    found = listing("pacs", tmp_path)
    assert len(found.files) == 24 and found.splits.count("val") == 8
    assert {found.names[label] for label in found.targets.tolist()} == {"dog", "horse"}
    text(tmp_path / "pacs/splits/photo_test_kfold.txt", ["photo/dog/photo_dog_2.jpg 3"])
    with pytest.raises(UserError, match="fits no order"):
        listing("pacs", tmp_path)


def test_vlcs_reads_numbered_folders_once(tmp_path):
    TREES["vlcs"](tmp_path)
    found = listing("vlcs", tmp_path)
    assert len(found.files) == 4 * 2 * 4 and set(found.targets.tolist()) == {0, 1}
    domains(tmp_path / "b/VLCS", ("Caltech101", "LabelMe", "VOC2007", "SUN09"), ("bird", "person"))
    assert set(listing("vlcs", tmp_path / "b").targets.tolist()) == {0, 4}


def test_terra_merges_its_annotation_files(tmp_path):
    terra_raw(tmp_path)
    data = published(name="terraincognita", root=tmp_path, unseen_domains=("location_100",))
    shown = sorted(
        (file.rpartition("/")[2], domain, data.space.names[label])
        for file, domain, label in zip(data.source.files, data.domains, data.targets.tolist(), strict=True)
    )
    assert shown == [
        ("id1.jpg", "location_38", "bird"),
        ("id2.jpg", "location_38", "empty"),
        ("id3.jpg", "location_43", "bird"),
        ("id3.jpg", "location_43", "bobcat"),
        ("id5.jpg", "location_100", "cat"),
    ]
    assert any("two species" in note for note in data.intake.warnings)
    assert data.space.texts()[5] == "a photo of a place without any animal."


def test_domainnet_compares_lists_with_both_orders(tmp_path):
    TREES["domainnet"](tmp_path)
    walked = listing("domainnet", tmp_path)
    assert walked.names == DOMAINNET == tuple(sorted(DOMAINNET))  # bytewise
    official = ("The_Mona_Lisa", "trumpet", "t-shirt", "umbrella")
    for place in ("clipart", "infograph", "painting", "quickdraw", "real", "sketch"):
        for word, count in (("train", 0), ("test", 1)):
            lines = [f"{place}/{name}/{place}_{name}_{count}.jpg {label}" for label, name in enumerate(official)]
            text(tmp_path / f"domainnet/{place}_{word}.txt", lines)
    found = listing("domainnet", tmp_path)
    label = by_file(walked)
    assert all(label[file] == own for file, own in by_file(found).items())  # labels come from folders all the same
    assert found.splits.count("train") == 24
    text(tmp_path / "domainnet/real_test.txt", ["real/t-shirt/real_t-shirt_1.jpg 3"])
    with pytest.raises(UserError, match="fits no order"):
        listing("domainnet", tmp_path)


def test_fedmvps_split_files_are_used_where_they_are(tmp_path):
    TREES["pacs"](tmp_path)
    for place in ("art_painting", "cartoon", "photo", "sketch"):
        item = [f"dog/{place}_dog_0.jpg", 0, "dog"], [f"horse/{place}_horse_0.jpg", 1, "horse"]
        table = {"train": [item[0]], "val": [], "test": [item[1]]}
        as_json(tmp_path / f"pacs/{place}/split_pacs_{place.replace('_', '')}.json", table)
    found = listing("pacs", tmp_path)
    assert len(found.files) == 8 and found.names == ("dog", "horse") and found.splits[:2] == ("train", "test")


@pytest.mark.parametrize(("policy", "value"), [("ignore", -1), ("negative", 0), ("positive", 1)])
def test_voc_says_what_difficult_means(policy, value, tmp_path):
    TREES["voc2007"](tmp_path)
    found = listing("voc2007", tmp_path, difficult=policy)
    assert found.targets[1, found.names.index("cat")] == value
    assert found.splits.count("train") == 6
    assert listing("voc2007", tmp_path, train_list="train").splits.count("train") == 3
    assert "dining table" in published(name="voc2007", root=tmp_path).space.names


def test_voc_is_read_from_its_xml_where_the_lists_are_missing(tmp_path):
    TREES["voc2007"](tmp_path)
    found = {policy: listing("voc2007", tmp_path, difficult=policy) for policy in ("ignore", "negative", "positive")}
    folder = tmp_path / "VOCdevkit/VOC2007"
    marks = {1: 0, -1: 1}  # value when difficult is ignored -> difficult
    for file, targets in zip(found["ignore"].files, found["ignore"].targets.tolist(), strict=True):
        things = [(name, marks[value]) for name, value in zip(found["ignore"].names, targets, strict=True) if value]
        xml(folder / f"Annotations/{file.rpartition('/')[2].removesuffix('.jpg')}.xml", things)
    for file in folder.glob("ImageSets/Main/*_*.txt"):
        file.unlink()
    for policy, before in found.items():
        now = listing("voc2007", tmp_path, difficult=policy)
        assert torch.equal(now.targets, before.targets) and now.files == before.files and now.splits == before.splits
    (folder / "Annotations/000005.xml").unlink()
    with pytest.raises(UserError, match=r"there is no annotation .*000005\.xml"):
        listing("voc2007", tmp_path)


def test_voc_lists_belong_to_their_split(tmp_path):
    TREES["voc2007"](tmp_path)
    text(tmp_path / "VOCdevkit/VOC2007/ImageSets/Main/dog_trainval.txt", ["000001 -1"])
    with pytest.raises(UserError, match="lists other images"):
        listing("voc2007", tmp_path)


def test_coco_sorts_by_id_leaves_crowds_and_keeps_the_empty(tmp_path):
    TREES["coco2014"](tmp_path)
    found = listing("coco2014", tmp_path)
    assert found.names == ("person", "bottle", "toothbrush")
    assert found.targets[:4].tolist() == [[1, 0, 1], [0, 0, 0], [0, 1, 0], [0, 0, 0]]
    assert len(listing("coco2014", tmp_path, include_unlabelled=False).files) == 4
    assert listing("coco2014", tmp_path, min_labels=2).splits == ("train", "test", "test", "test", "test")
    assert listing("coco2014", tmp_path, crowds=True).targets[1].tolist() == [1, 0, 0]


def test_zero_shot_lists_ask_about_unseen_and_about_all(tmp_path):
    TREES["coco_zero_shot"](tmp_path)
    data = published(name="coco_zero_shot", root=tmp_path)
    assert data.space.names == ("person", "bottle", "tie") and (data.base, data.new) == ((0, 1), (2,))
    assert data.test_candidates == {"zsl": (2,), "gzsl": (0, 1, 2)}
    assert data.targets[0].tolist() == [1, 0, 0]  # tie is no class of the training list
    assert data.splits == ("train", "train", "train", "zsl", "gzsl", "gzsl")
    assert "do not exist: 1 listed image." in data.intake.warnings[0]


def test_nuswide_refuses_lists_of_other_lengths(tmp_path):
    TREES["nuswide"](tmp_path)
    found = listing("nuswide", tmp_path)
    assert found.targets.tolist() == [[1, 0], [0, 1], [0, 0], [1, 1], [0, 1], [1, 0]]
    assert listing("nuswide", tmp_path, min_labels=2).splits == ("train", "test", "test")
    (tmp_path / "NUSWIDE/raw/Flickr/actor/Train_1.jpg").unlink()
    kept = published(name="nuswide", root=tmp_path, missing="skip")
    assert kept.targets.tolist() == [[1, 0], [0, 0], [1, 1], [0, 1], [1, 0]]  # labels stay with their pictures
    text(tmp_path / "NUSWIDE/raw/TrainTestLabels/Labels_animal_Train.txt", ["1"])
    with pytest.raises(UserError, match="by line number"):
        listing("nuswide", tmp_path)


def test_multiscene_adds_what_names_lack(tmp_path):
    TREES["multiscene_clean"](tmp_path)
    data = published(name="multiscene_clean", root=tmp_path)
    assert data.source.files[0] == "images/img_1.jpg" and data.space.names == ("oil field", "Beach")
    assert data.targets[1].tolist() == [0, 0]


def test_mlrsnet_splits_every_category_or_the_categories(tmp_path):
    TREES["mlrsnet"](tmp_path)
    found = listing("mlrsnet", tmp_path)
    first = [word for file, word in zip(found.files, found.splits, strict=True) if "/bridge/" in file]
    assert [first.count(word) for word in ("train", "val", "test")] == [4, 1, 5]
    halves = listing("mlrsnet", tmp_path, partition="halves")
    assert {file.split("/")[1] for file, word in zip(halves.files, halves.splits, strict=True) if word == "train"} == {
        "bridge"
    }
    text(tmp_path / "MLRSNet/labels/harbor&port.csv", ["image,airplane,bridge,harbor"])
    with pytest.raises(UserError, match="other classes"):
        listing("mlrsnet", tmp_path)


def test_objects365_sorts_by_id_and_trims_names(tmp_path):
    TREES["objects365"](tmp_path)
    found = listing("objects365", tmp_path)
    assert found.names == ("human", "table tennis paddle", "tissue", "scale")
    assert found.targets[2:].tolist() == [[0, 0, 1, 0], [0, 0, 0, 1]]


def test_an_unknown_option_or_name_is_explained(tmp_path):
    TREES["dtd"](tmp_path)
    with pytest.raises(UserError, match=r"no option 'make_splits'; did you mean 'make_split'"):
        listing("dtd", tmp_path, make_splits=True)
    with pytest.raises(UserError, match=r"did you mean 'dtd'"):
        entry("dtdd")


def test_counts_other_than_published_are_remarked(tmp_path):
    TREES["dtd"](tmp_path)
    notes = published(name="dtd", root=tmp_path).intake.warnings
    assert "DTD has 47 classes, but 3 were found." in notes and any(
        "train 6 instead of 2,820" in note for note in notes
    )


def test_a_data_set_for_testing_only_has_no_training_images(tmp_path):
    TREES["dtd"](tmp_path)
    data = published(name="dtd", root=tmp_path, train=False)
    assert not data.has_training_images and data.base == (0, 1, 2) and data.new == ()


@pytest.mark.parametrize("name", TREES)
def test_every_row_explains_itself(name):
    about = entry(name)
    assert about.template.count("{}") == 1 and about.traps and about.sources
    assert all(
        trap[0] in string.ascii_letters + string.digits + "/" and trap.endswith((".", ")")) for trap in about.traps
    )


def test_prompt_ensembles_combine_templates_and_synonyms(tmp_path):
    TREES["voc2007"](tmp_path)
    space = published(name="voc2007", root=tmp_path, base="all").space
    assert space.ensemble_texts()[space.names.index("sofa")] == ("a photo of a sofa.", "a photo of a couch.")
    TREES["imagenet"](tmp_path)
    assert len(published(name="imagenet", root=tmp_path).space.ensemble_texts()[0]) == 8


MOVED = {
    "fgvc_aircraft": {"fgvc_aircraft": "fgvc-aircraft-2013b/data"},
    "eurosat": {"eurosat/2750": "eurosat/EuroSAT_RGB"},
    "imagenetv2": {
        "imagenetv2/imagenetv2-matched-frequency-format-val": "imagenetv2/imagenetv2-matched-frequency",
        "imagenetv2/classnames.txt": "imagenet/classnames.txt",
    },
    "imagenet_sketch": {"imagenet-sketch/sketch": "imagenet-sketch/images"},
    "pacs": {"pacs": "PACS/kfold"},
    "officehome": {"OfficeHomeDataset_10072016": "officehome", "officehome/Real World": "officehome/realworld"},
    "domainnet": {"domainnet": "domain_net"},
    "terraincognita": {"terra_incognita": "terraincognita"},
    "mlrsnet": {"MLRSNet/labels": "MLRSNet/Labels"},
    "voc2007": {"VOCdevkit/VOC2007": "VOC2007"},
    "nuswide": {
        "NUSWIDE/raw/TrainTestLabels": "NUSWIDE/Groundtruth/TrainTestLabels",
        "NUSWIDE/raw/Concepts81.txt": "NUSWIDE/ConceptsList/Concepts81.txt",
        "NUSWIDE/raw/ImageList": "NUSWIDE/ImageList",
        "NUSWIDE/raw/Flickr": "NUSWIDE/Flickr",
    },
}


@pytest.mark.parametrize("name", MOVED)
def test_the_other_layouts_in_circulation_hold_the_same(name, tmp_path):
    TREES[name](tmp_path)
    found = listing(name, tmp_path)
    for old, new in MOVED[name].items():
        (tmp_path / new).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / old).rename(tmp_path / new)
    moved = listing(name, tmp_path)
    assert moved.names == found.names and moved.domains == found.domains
    assert [os.path.basename(file) for file in moved.files] == [os.path.basename(file) for file in found.files]
    assert torch.equal(moved.targets, found.targets)


def test_voc_is_read_from_two_trees_too(tmp_path):
    TREES["voc2007"](tmp_path)
    found = listing("voc2007", tmp_path)
    for part in ("VOCtrainval2007", "VOCtest2007"):
        shutil.copytree(tmp_path / "VOCdevkit", tmp_path / "two/VOC2007" / part / "VOCdevkit")
    two = listing("voc2007", tmp_path / "two")
    assert torch.equal(two.targets, found.targets) and two.splits == found.splits
    assert two.files[0].startswith("VOCtrainval2007/") and two.files[-1].startswith("VOCtest2007/")


def test_the_second_objects365_has_folders_in_its_names_and_lacks_three_files(tmp_path):
    folder = tmp_path / "objects365"
    names = ("v1/patch6/objects365_v1_00320532.jpg", "v2/patch9/objects365_v2_00420917.jpg")
    for part in ("train", "val"):
        table = {
            "images": [{"id": number, "file_name": f"images/{name}"} for number, name in enumerate(names)],
            "annotations": [{"image_id": 1, "category_id": 2, "iscrowd": 0}],
            "categories": [{"id": 2, "name": "Bread"}, {"id": 1, "name": "bread"}],
        }
        as_json(folder / f"zhiyuan_objv2_{part}.json", table)
    picture(folder / "images" / names[1])
    found = listing("objects365", tmp_path)
    assert found.names == ("bread", "Bread") and found.files == (f"images/{names[1]}",) * 2
