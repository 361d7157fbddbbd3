"""Miniatures of published data sets: for every name of the table, its standard layout with a few tiny pictures."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
from scipy.io import savemat

EACH = {"train": 2, "val": 1, "test": 1}  # pictures of a class
NAMES = ("n01440764 tench", "n01443537 goldfish", "n04355933 sunglasses", "n04356056 sunglasses")
NUMBERED = (
    *("n01440764 tench", "n01443537 goldfish", "n01484850 great white shark", "n01491361 tiger shark"),
    *("n01494475 hammerhead shark", "n01496331 electric ray", "n01498041 stingray", "n01514668 rooster"),
    *("n01514859 hen", "n01518878 ostrich", "n01530575 brambling"),
)
WNIDS = tuple(line.split()[0] for line in NAMES)


def picture(path: Path) -> Path:
    """A flat picture of 8 x 8 whose colour is its own; what its suffix says does not matter."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"P6 8 8 255\n" + hashlib.sha256(str(path.name).encode()).digest()[:3] * 64)
    return path


def text(path: Path, lines: Iterable[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def as_json(path: Path, value: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
    return path


def split(
    folder: Path, images: str, file: str, classes: Mapping[str, str], path: str = "{key}/{key}_{n:04d}.jpg"
) -> None:
    """A split JSON over classes (key -> name in label order) with its pictures."""
    table: dict[str, list[list[object]]] = {word: [] for word in EACH}
    for label, (key, name) in enumerate(classes.items()):
        number = 0
        for word, count in EACH.items():
            for _ in range(count):
                number += 1
                where = path.format(key=key, n=number, at=10 * label + number)
                picture(folder / images / where)
                table[word].append([where, label, name])
    as_json(folder / file, table)


def caltech101(root: Path) -> None:
    folder = root / "caltech-101"
    classes = {"Faces": "face", "Leopards": "leopard", "accordion": "accordion", "airplanes": "airplane"}
    split(folder, "101_ObjectCategories", "split_zhou_Caltech101.json", classes, "{key}/image_{n:04d}.jpg")
    for key in ("BACKGROUND_Google", "Faces_easy"):
        picture(folder / f"101_ObjectCategories/{key}/image_0001.jpg")


def oxford_pets(root: Path) -> None:
    folder = root / "oxford_pets"
    classes = {"Abyssinian": "abyssinian", "american_bulldog": "american_bulldog", "Egyptian_Mau": "egyptian_mau"}
    split(folder, "images", "split_zhou_OxfordPets.json", classes, "{key}_{n}.jpg")
    (folder / "images/Abyssinian_100.mat").write_bytes(b"")
    lines = [f"{key}_{{}} {label} 1 1" for label, key in enumerate(classes, start=1)]
    text(folder / "annotations/list.txt", ["#Image CLASS-ID SPECIES BREED ID"])
    text(folder / "annotations/trainval.txt", ["# a remark", *(line.format(n) for line in lines for n in (1, 2, 3))])
    text(folder / "annotations/test.txt", [line.format(4) for line in lines])


def oxford_flowers(root: Path) -> None:
    folder = root / "oxford_flowers"
    split(
        folder,
        "jpg",
        "split_zhou_OxfordFlowers.json",
        {"1": "pink primrose", "2": "colt's foot", "10": "globe thistle"},
        "image_{at:05d}.jpg",
    )
    labels = np.zeros((1, 24), np.uint8)
    for label, number in enumerate((1, 2, 10)):
        labels[0, 10 * label : 10 * label + 4] = number
    labels[labels == 0] = 1
    for number in range(1, 25):
        picture(folder / f"jpg/image_{number:05d}.jpg")
    savemat(folder / "imagelabels.mat", {"labels": labels})
    as_json(folder / "cat_to_name.json", {"10": "globe thistle", "1": "pink primrose", "2": "colt's foot"})


def fgvc_aircraft(root: Path) -> None:
    folder, names = root / "fgvc_aircraft", ("707-320", "F-16A/B", "Cessna 172")
    text(folder / "variants.txt", names)
    number = 0
    for word, count in EACH.items():
        lines = []
        for name in names:
            for _ in range(count):
                number += 1
                picture(folder / f"images/{number:07d}.jpg")
                lines.append(f"{number:07d} {name}")
        text(folder / f"images_variant_{word}.txt", lines)


def dtd(root: Path) -> None:
    names = {"banded": "banded", "polka-dotted": "polka-dotted", "woven": "woven"}
    split(root / "dtd", "images", "split_zhou_DescribableTextures.json", names)


def eurosat(root: Path) -> None:
    classes = {"AnnualCrop": "Annual Crop Land", "Forest": "Forest", "SeaLake": "Sea or Lake"}
    split(root / "eurosat", "2750", "split_zhou_EuroSAT.json", classes, "{key}/{key}_{n}.jpg")


def stanford_cars(root: Path, *, rows: int = 3) -> None:
    folder = root / "stanford_cars"
    names = ("AM General Hummer SUV 2000", "Ram C/V Cargo Van Minivan 2012")
    fields = [(name, "O") for name in ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "fname")]
    table: dict[str, list[list[object]]] = {word: [] for word in EACH}
    for place, file, count in (
        ("cars_train", "devkit/cars_train_annos.mat", rows),
        ("cars_test", "cars_test_annos_withlabels.mat", max(1, rows - 1)),
    ):
        cells = np.zeros((1, count), dtype=fields)
        for number in range(count):
            label = number % 2
            cells[0, number] = (1, 1, 2, 2, np.uint8(label + 1), f"{number + 1:05d}.jpg")
            picture(folder / place / f"{number + 1:05d}.jpg")
            year_first = " ".join([names[label].split()[-1], *names[label].split()[:-1]])
            word = "test" if place == "cars_test" else "val" if number == 2 else "train"
            table[word].append([f"{place}/{number + 1:05d}.jpg", label, year_first])
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        savemat(folder / file, {"annotations": cells})
    classes = np.empty((1, 2), dtype=object)
    classes[0, :] = names
    savemat(folder / "devkit/cars_meta.mat", {"class_names": classes})
    as_json(folder / "split_zhou_StanfordCars.json", table)


def food101(root: Path) -> None:
    folder = root / "food-101"
    names = {name: name for name in ("apple_pie", "cheese_plate", "cheesecake")}
    split(folder, "images", "split_zhou_Food101.json", names, "{key}/{n}.jpg")
    text(folder / "meta/classes.txt", ["apple_pie", "cheesecake", "cheese_plate"])


def sun397(root: Path) -> None:
    folder = root / "sun397"
    keys = ("/a/abbey", "/a/apartment_building/outdoor", "/b/bar")
    classes = {key.lstrip("/"): " ".join(reversed(key.split("/")[2:])) for key in keys}
    split(folder, "SUN397", "split_zhou_SUN397.json", classes, "{key}/sun_{n}.jpg")
    text(folder / "ClassName.txt", keys)
    text(folder / "Training_01.txt", [f"{key}/sun_{n}.jpg" for key in keys for n in (1, 2, 3)])
    text(folder / "Testing_01.txt", [f"{key}/sun_4.jpg" for key in keys])


def ucf101(root: Path) -> None:
    folder = root / "ucf101"
    keys = ("Hammering", "HammerThrow", "HandstandPushups")
    names = ("Hammering", "Hammer_Throw", "Handstand_Pushups")
    inside = ("Hammering", "HammerThrow", "HandStandPushups")  # the file's capitals are its own
    table: dict[str, list[list[object]]] = {word: [] for word in EACH}
    lists: dict[str, list[str]] = {"train": [], "test": []}
    for label, (key, name, inner) in enumerate(zip(keys, names, inside, strict=True)):
        for number, word in enumerate(("train", "train", "val", "test"), start=1):
            file = f"v_{inner}_g01_c{number:02d}"
            picture(folder / f"UCF-101-midframes/{name}/{file}.jpg")
            table[word].append([f"{name}/{file}.jpg", label, name])
            tail = "" if word == "test" else f" {label + 1}"
            lists["test" if word == "test" else "train"].append(f"{key}/{file}.avi{tail}")
    as_json(folder / "split_zhou_UCF101.json", table)
    text(folder / "ucfTrainTestlist/classInd.txt", [f"{label} {key}" for label, key in enumerate(keys, start=1)])
    for word, lines in lists.items():
        text(folder / f"ucfTrainTestlist/{word}list01.txt", lines)


def imagenet(root: Path, *, inside: str = "images/") -> None:
    folder = root / "imagenet"
    text(folder / "classnames.txt", NAMES)
    for word, count in (("train", 2), ("val", 1)):
        for wnid in WNIDS:
            for number in range(count):
                picture(folder / f"{inside}{word}/{wnid}/{word}_{number}.JPEG")


def imagenetv2(root: Path) -> None:
    folder = root / "imagenetv2"
    text(folder / "classnames.txt", NUMBERED)
    for number in (0, 1, 2, 10):
        picture(folder / f"imagenetv2-matched-frequency-format-val/{number}/a{number}.jpeg")


def imagenet_sketch(root: Path) -> None:
    folder = root / "imagenet-sketch"
    text(folder / "classnames.txt", NAMES)
    for wnid in WNIDS:
        picture(folder / f"sketch/{wnid}/sketch_0.JPEG")


def imagenet_a(root: Path) -> None:
    _subset(root / "imagenet-adversarial", "imagenet-a")


def imagenet_r(root: Path) -> None:
    _subset(root / "imagenet-rendition", "imagenet-r")


def _subset(folder: Path, inside: str) -> None:
    text(folder / "classnames.txt", NAMES)
    text(folder / inside / "README.txt", ["not a class"])
    for wnid in (WNIDS[3], WNIDS[0]):
        picture(folder / f"{inside}/{wnid}/a.jpg")


def xml(path: Path, objects: Iterable[tuple[str, int]]) -> None:
    """A VOC annotation: names of objects, and whether each is difficult."""
    things = [f"<object><name>{name}</name><difficult>{hard}</difficult></object>" for name, hard in objects]
    text(path, ["<annotation>", *things, "</annotation>"])


def domains(folder: Path, places: Iterable[str], classes: Iterable[str], *, each: int = 4) -> None:
    """`each` pictures in every <place>/<class>."""
    for place in places:
        for name in classes:
            for number in range(each):
                picture(folder / place / name / f"{place.replace('/', '_')}_{name}_{number}.jpg")


def pacs(root: Path) -> None:
    domains(root / "pacs", ("art_painting", "cartoon", "photo", "sketch"), ("dog", "horse"))


def officehome(root: Path) -> None:
    folder = root / "OfficeHomeDataset_10072016"
    domains(folder, ("Art", "Clipart", "Product", "Real World"), ("Alarm_Clock", "TV", "Table"))
    text(folder / "ImageInfo.csv", ["not a picture"])


def vlcs(root: Path) -> None:
    domains(root / "VLCS", ("CALTECH/full", "LABELME/full", "PASCAL/full", "SUN/full"), ("0", "1"))
    domains(root / "VLCS", ("CALTECH/train", "CALTECH/test"), ("0", "1"))


def terraincognita(root: Path) -> None:
    places = ("location_38", "location_43", "location_46", "location_100")
    domains(root / "terra_incognita", places, ("bird", "empty"))


def terra_raw(root: Path) -> None:
    """The raw form: one picture with two species, locations as numbers and as text, repeated rows."""
    folder = root / "terra_incognita"
    rows = [("id1", 38, "bird"), ("id2", "38", "empty"), ("id3", 43, "bobcat"), ("id3", 43, "bird"), ("id4", 7, "bird")]
    rows += [("id5", "100", "cat"), ("id6", 46, "car")]
    numbers = {name: number for number, name in enumerate(("bird", "empty", "bobcat", "cat", "car"), start=10)}
    table = {
        "images": [{"id": key, "file_name": f"{key}.jpg", "location": place} for key, place, _ in rows],
        "annotations": [
            {"id": n, "image_id": key, "category_id": numbers[name]} for n, (key, _, name) in enumerate(rows)
        ],
        "categories": [{"id": number, "name": name} for name, number in numbers.items()] * 2,
    }
    for part in ("cis_val", "cis_test", "train", "trans_val", "trans_test"):
        as_json(folder / f"eccv_18_annotation_files/{part}_annotations.json", table)
    for key, _, _ in rows:
        picture(folder / f"eccv_18_all_images_sm/{key}.jpg")


DOMAINNET = ("The_Mona_Lisa", "t-shirt", "trumpet", "umbrella")


def domainnet(root: Path) -> None:
    places = ("clipart", "infograph", "painting", "quickdraw", "real", "sketch")
    domains(root / "domainnet", places, DOMAINNET)


def voc2007(root: Path) -> None:
    from fedprompt.data.published.catalog import entry

    folder = root / "VOCdevkit/VOC2007"
    classes = list(entry("voc2007").options["classes"])  # type: ignore[arg-type]
    ids = {"train": [1, 2, 3], "val": [4, 5, 6], "test": [7, 8, 9]}
    ids["trainval"] = ids["train"] + ids["val"]
    for word, numbers in ids.items():
        text(folder / f"ImageSets/Main/{word}.txt", [f"{number:06d}" for number in numbers])
        for label, name in enumerate(classes):
            marks = [1 if number % 3 == label % 3 else -1 for number in numbers]
            # Picture 2, 5, 8: its only cat is difficult.
            marks = [
                0 if name == "cat" and number % 3 == 2 else mark for number, mark in zip(numbers, marks, strict=True)
            ]
            lines = [f"{number:06d} {mark:2d}" for number, mark in zip(numbers, marks, strict=True)]
            text(folder / f"ImageSets/Main/{name}_{word}.txt", lines)
    for number in range(1, 10):
        picture(folder / f"JPEGImages/{number:06d}.jpg")


def coco2014(root: Path) -> None:
    folder = root / "coco"
    categories = [{"id": 90, "name": "toothbrush"}, {"id": 1, "name": "person"}, {"id": 44, "name": "bottle"}]
    for part in ("train", "val"):
        files = [f"COCO_{part}2014_{number:012d}.jpg" for number in (9, 25, 30, 34)]
        shown = [(9, 90, 0), (9, 90, 0), (9, 1, 0), (25, 1, 1), (30, 44, 0)]
        table = {
            "images": [{"id": number, "file_name": file} for number, file in zip((9, 25, 30, 34), files, strict=True)],
            "annotations": [{"image_id": i, "category_id": c, "iscrowd": crowd} for i, c, crowd in shown],
            "categories": categories,
        }
        as_json(folder / f"annotations/instances_{part}2014.json", table)
        for file in files:
            picture(folder / f"{part}2014" / file)


def coco_zero_shot(root: Path) -> None:
    coco2014(root)
    folder = root / "coco/zero-shot"
    train = [
        ["/abs/x/COCO_train2014_000000000009.jpg", ["person", "person", "tie"]],
        ["C:\\y\\COCO_train2014_000000000025.jpg", ["person"]],
    ]
    train += [["/abs/COCO_train2014_000000000030.jpg", ["bottle"]]]
    unseen = [["/abs/x/COCO_val2014_000000000009.jpg", ["tie", "tie"]], ["/gone/COCO_val2014_999.jpg", ["tie"]]]
    both = [
        ["/abs/x/COCO_val2014_000000000025.jpg", ["tie", "person"]],
        ["/abs/COCO_val2014_000000000030.jpg", ["bottle"]],
    ]
    as_json(folder / "train_48_filtered.json", {"images": train, "classes": ["person", "bottle"]})
    as_json(folder / "test_17_filtered.json", {"images": unseen, "classes": ["tie"]})
    as_json(folder / "test_65_filtered.json", {"images": both, "classes": ["person", "bottle", "tie"]})


def nuswide_zero_shot(root: Path) -> None:
    for number in range(4):
        picture(root / f"NUSWIDE/raw/Flickr/actor/{number:04d}_1.jpg")
    folder = root / "NUSWIDE/zero-shot"
    as_json(folder / "train_925_filtered.json", {"images": [["/a/0000_1.jpg", ["sky"]]], "classes": ["sky"]})
    as_json(folder / "test_81_filtered.json", {"images": [["/a/0001_1.jpg", ["birds"]]], "classes": ["birds"]})
    as_json(folder / "test_1006_filtered.json", {"images": [["/a/0002_1.jpg", ["sky"]]], "classes": ["sky", "birds"]})


def nuswide(root: Path) -> None:
    folder = root / "NUSWIDE/raw"
    text(folder / "Concepts81.txt", ["airport", "animal"])
    for word, marks in (("Train", [(1, 0), (0, 1), (0, 0), (1, 1)]), ("Test", [(0, 1), (1, 0)])):
        lines = [f"actor\\{word}_{number}.jpg" for number in range(len(marks))]
        text(folder / f"ImageList/{word}Imagelist.txt", lines)
        for column, name in enumerate(("airport", "animal")):
            text(folder / f"TrainTestLabels/Labels_{name}_{word}.txt", [str(mark[column]) for mark in marks])
        for line in lines:
            picture(folder / "Flickr" / line.replace("\\", "/"))


def multiscene_clean(root: Path) -> None:
    folder = root / "MultiScene-Clean"
    for file, rows in (
        ("Tra", (("img_1", 1, 0), ("img_2", 0, 0), ("img_3", 1, 1))),
        ("Test", (("img_4", 0, 1), ("img_5", 1, 0))),
    ):
        text(folder / f"{file}.csv", ["image,OilFiled,Beach", *(f"{name},{a},{b}" for name, a, b in rows)])
        for name, _, _ in rows:
            picture(folder / f"images/{name}.jpg")


def mlrsnet(root: Path) -> None:
    folder = root / "MLRSNet"
    for category in ("bridge", "harbor&port"):
        files = [f"{category}_{number:05d}.jpg" for number in range(1, 11)]
        rows = [f"{file},{number % 2},1,{int(number % 3 == 0)}" for number, file in enumerate(files)]
        text(folder / f"labels/{category}.csv", ["image,airplane,bridge,habor", *rows])
        for file in files:
            picture(folder / f"Images/{category}/{file}")


def objects365(root: Path) -> None:
    folder = root / "objects365"
    names = {224: "scale", 1: "human", 160: "tissue ", 9: "table tennis  paddle"}
    for part, order in (("train", (1, 9, 160, 224)), ("val", (224, 1, 160, 9))):
        files = [f"obj365_{part}_{number:012d}.jpg" for number in (1, 2)]
        table = {
            "images": [{"id": number, "file_name": file} for number, file in enumerate(files)],
            "annotations": [{"image_id": 0, "category_id": 160, "iscrowd": 0}, {"image_id": 1, "category_id": 224}],
            "categories": [{"id": number, "name": names[number]} for number in order],
        }
        as_json(folder / f"{part}.json", table)
        for file in files:
            picture(folder / part / file)


TREES: Mapping[str, Callable[[Path], None]] = {
    builder.__name__: builder
    for builder in (
        *(caltech101, oxford_pets, oxford_flowers, fgvc_aircraft, dtd, eurosat, stanford_cars, food101, sun397, ucf101),
        *(imagenet, imagenetv2, imagenet_sketch, imagenet_a, imagenet_r),
        *(pacs, officehome, vlcs, terraincognita, domainnet),
        *(voc2007, coco2014, nuswide, multiscene_clean, mlrsnet, objects365, coco_zero_shot, nuswide_zero_shot),
    )
}
