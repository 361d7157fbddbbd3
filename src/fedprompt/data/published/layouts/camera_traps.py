"""TerraIncognita as first published (Beery et al., 2018): camera-trap annotations, merged over several JSON files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, cast

from fedprompt.data.folder import DatasetFolder, JsonObject
from fedprompt.errors import UserError, plural


class Sighting(NamedTuple):
    """One species in one image at one location."""

    file: str
    location: str
    species: str


def read_sightings(
    folder: DatasetFolder, files: Sequence[str], locations: Mapping[str, Sequence[str]], classes: Sequence[str]
) -> list[Sighting]:
    """All sightings at these locations; an image of two species is listed twice, once for each.

    A location is the last number in its domain's name, an integer in one file and a string in another; files repeat
    images and categories.
    """
    wanted = {name.rpartition("_")[2]: name for name in locations}
    place = next((top for top in ("eccv_18_all_images_sm", ".") if folder.has(top)), ".")
    found: dict[Sighting, None] = {}
    for file in files:
        table = folder.json(file)
        if not isinstance(table, dict) or not {"images", "annotations", "categories"} <= table.keys():
            raise UserError(f"{folder.path / file} lacks images, annotations or categories; download it again.")
        names = {str(row["id"]): str(row["name"]) for row in cast(Sequence[JsonObject], table["categories"])}
        images = {str(row["id"]): row for row in cast(Sequence[JsonObject], table["images"])}
        for row in cast(Sequence[JsonObject], table["annotations"]):
            image, name = images[str(row["image_id"])], names[str(row["category_id"])]
            location = wanted.get(str(image["location"]))
            if location is not None and name in classes:
                found[Sighting(f"{place}/{image['file_name']}".removeprefix("./"), location, name)] = None
    if not found:
        raise UserError(f"The annotations in {folder.path} have no images from the locations {', '.join(wanted)}.")
    seen = sorted(found)
    if twice := len(seen) - len({sight.file for sight in seen}):
        folder.notes.append(f"Listed once for each of their two species: {plural(twice, 'image')}.")
    return seen
