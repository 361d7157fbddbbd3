"""TerraIncognita in its raw form (Beery et al., 2018): annotations of camera traps, merged over several JSON files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, cast

from fedprompt.data.published.listing import Folder
from fedprompt.errors import UserError

Row = Mapping[str, object]


class Sight(NamedTuple):
    """One species in one picture at one location."""

    file: str
    location: str
    name: str


def sights(
    folder: Folder, files: Sequence[str], locations: Mapping[str, Sequence[str]], classes: Sequence[str]
) -> list[Sight]:
    """What was seen at the wanted locations; a picture of two species is there twice, once for each.

    A location is the last number in its domain's name, an integer in one file and a string in another; files repeat
    pictures and categories.
    """
    wanted = {name.rpartition("_")[2]: name for name in locations}
    place = next((top for top in ("eccv_18_all_images_sm", ".") if folder.has(top)), ".")
    found: dict[Sight, None] = {}
    for file in files:
        table = folder.json(file)
        if not isinstance(table, dict) or not {"images", "annotations", "categories"} <= table.keys():
            raise UserError(f"{folder.path / file} lacks images, annotations or categories; download it again.")
        names = {str(row["id"]): str(row["name"]) for row in cast(Sequence[Row], table["categories"])}
        pictures = {str(row["id"]): row for row in cast(Sequence[Row], table["images"])}
        for row in cast(Sequence[Row], table["annotations"]):
            picture, name = pictures[str(row["image_id"])], names[str(row["category_id"])]
            location = wanted.get(str(picture["location"]))
            if location is not None and name in classes:
                found[Sight(f"{place}/{picture['file_name']}".removeprefix("./"), location, name)] = None
    if not found:
        raise UserError(f"The annotations in {folder.path} have nothing from the locations {', '.join(wanted)}.")
    seen = sorted(found)
    if twice := len(seen) - len({sight.file for sight in seen}):
        folder.notes.append(f"{twice} picture(s) show two species and are there once for each.")
    return seen
