"""The concepts that pretraining draws and names: kinds, hand-written parts, keywords, and colours and shapes measured.

1,192 emoji that all three seen artists draw. 120 of them are the downstream classes; their frequency ranks lie in the
tail, so that their names are rare in captions while their attributes are common.
"""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path

import torch
from torch import Tensor

from fedprompt.data.dataset import Dataset
from fedprompt.data.labels import LabelSpace
from fedprompt.demo.emoji import render_single
from fedprompt.demo.pretraining.measure import measured_attributes
from fedprompt.demo.pretraining.rasters import Emoji, Rasters, load_rasters
from fedprompt.demo.render import COLOURS, Sprites
from fedprompt.demo.rendered import Address, RenderedImages
from fedprompt.demo.sprites import MONO, SEEN, UNSEEN
from fedprompt.seeding import stream

HEAD = 250  # downstream classes have ranks from here on
ZIPF_OFFSET = 150  # flat enough that a rare concept is drawn some hundred times in a million images
SEED = 0

KIND_OF_SUBGROUPS = {
    "a mammal": "animal-mammal",
    "a bird": "animal-bird",
    "a reptile": "animal-amphibian animal-reptile",
    "a sea animal": "animal-marine",
    "a bug": "animal-bug",
    "a flower": "plant-flower",
    "a plant": "plant-other",
    "a fruit": "food-fruit",
    "a vegetable": "food-vegetable",
    "a meal": "food-prepared food-asian",
    "a sweet": "food-sweet",
    "a drink": "drink",
    "a dish": "dishware",
    "a map": "place-map",
    "a landscape": "place-geographic",
    "a building": "place-building place-religious",
    "a place": "place-other",
    "a vehicle": "transport-ground",
    "a boat": "transport-water",
    "an aircraft": "transport-air",
    "a sight in the sky": "sky-weather",
    "a party item": "event",
    "an award": "award-medal",
    "a sport item": "sport",
    "a game": "game",
    "an art": "arts-crafts",
    "a garment": "clothing",
    "a sound sign": "sound",
    "a music item": "music",
    "an instrument": "musical-instrument",
    "a phone": "phone",
    "a device": "computer light-video",
    "a paper item": "book-paper",
    "a money item": "money",
    "a mail item": "mail",
    "a writing item": "writing",
    "an office item": "office",
    "a lock": "lock",
    "a tool": "tool",
    "a lab item": "science",
    "a medical item": "medical",
    "a household item": "household",
    "an object": "other-object",
    "a heart": "heart",
    "a sign": "emotion",
    "a shape": "geometric",
    "a body part": "body-parts",
    "a face": "monkey-face cat-face face-smiling face-affection face-tongue face-hand face-neutral-skeptical "
    "face-sleepy face-unwell face-hat face-glasses face-concerned face-negative face-costume",
    "a hand": "hand-fingers-open hand-fingers-partial hand-single-finger hand-fingers-closed hands hand-prop",
    "a person": "person person-gesture person-role person-fantasy person-activity person-sport person-resting "
    "family person-symbol",
}
KINDS = {subgroup: kind for kind, subgroups in KIND_OF_SUBGROUPS.items() for subgroup in subgroups.split()}

# Objects, animals, food and places with names of one or two words, drawn by all six artists, and not near-copies of
# each other (one moon, one umbrella). 120 of them are chosen.
CANDIDATES = """
monkey, gorilla, wolf, tiger, leopard, horse, ox, cow, pig, boar, ram, goat, camel, elephant, rhinoceros, mouse,
rabbit, chipmunk, bat, koala, turkey, rooster, penguin, dove, eagle, duck, owl, frog, crocodile, turtle, lizard,
snake, dragon, whale, dolphin, fish, blowfish, shark, octopus, crab, shrimp, squid, snail, butterfly, ant, honeybee,
spider, scorpion, spiral shell, cactus, mushroom, sunflower, tulip, rose, palm tree, evergreen tree, four leaf clover,
maple leaf, grapes, watermelon, lemon, banana, pineapple, pear, cherries, strawberry, tomato, avocado, eggplant,
carrot, croissant, pancakes, bacon, hamburger, pizza, hot dog, taco, burrito, egg, popcorn, sushi, doughnut, cookie,
birthday cake, candy, lollipop, honey pot, custard, wine glass, beer mug, amphora, volcano, castle, church, mosque,
fountain, tent, ferris wheel, locomotive, bus, ambulance, fire engine, police car, tractor, motorcycle, bicycle, fuel
pump, anchor, sailboat, airplane, helicopter, rocket, satellite, rainbow, umbrella, snowflake, snowman, fire, jack o
lantern, christmas tree, balloon, wrapped gift, trophy, soccer ball, basketball, bowling, boxing glove, ice skate,
guitar, violin, trumpet, drum, saxophone, headphone, radio, laptop, keyboard, television, camera, candle, light bulb,
flashlight, scroll, newspaper, envelope, package, pencil, paintbrush, briefcase, paperclip, scissors, hammer, bomb,
shield, wrench, gear, microscope, telescope, syringe, pill, door, bed, toilet, bathtub, shopping cart, crown, top hat,
glasses, necktie, jeans, dress, kimono, handbag, backpack, running shoe, high heeled shoe, bell, spoon, moai
"""
DOWNSTREAM = 120
KEYWORD_USERS = (6, 60)  # keywords that so many concepts share
VAGUE_KEYWORDS = (
    "ily omg not good right feels face person button mark sign bar eyes eye whatever lol lmao best big fun item"
)


@dataclass(frozen=True)
class Concept:
    """One thing to draw and to name."""

    name: str
    kind: str  # "a bird"
    parts: tuple[str, ...]  # "has a beak", "wings"
    measured: tuple[str, ...]  # "is mostly red", "is round"
    keywords: tuple[str, ...]  # "food"
    row: int  # in the rasters

    @property
    def attributes(self) -> tuple[str, ...]:
        """Five or six phrases: parts, colours and shapes, the kind, and keywords if there are few others."""
        own = (*self.parts[:3], *self.measured[:2], self.kind)
        about = tuple(f"is about {word}" for word in self.keywords)
        return (*own, *about[: max(0, 5 - len(own))])

    @property
    def phrases(self) -> tuple[str, ...]:
        """All that captions may say of it beside its name."""
        return tuple(dict.fromkeys((*self.attributes, *self.parts, *self.measured)))


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """All concepts with their drawings and frequencies; `classes` are the downstream classes."""

    concepts: tuple[Concept, ...]
    classes: tuple[int, ...]
    ranks: tuple[int, ...]
    rasters: Rasters

    @cached_property
    def frequencies(self) -> Tensor:
        """The probability of each concept [K], Zipf-Mandelbrot over ranks."""
        weights = 1 / (torch.tensor(self.ranks) + ZIPF_OFFSET).double()
        return weights / weights.sum()

    @cached_property
    def attributes(self) -> tuple[str, ...]:
        """All distinct attributes, the most shared first."""
        return tuple(phrase for phrase, _ in Counter(a for one in self.concepts for a in one.phrases).most_common())

    @cached_property
    def attribute_table(self) -> tuple[Tensor, Tensor]:
        """Which concept has which attribute [K, A], and which attributes are colours [A]."""
        column = {phrase: number for number, phrase in enumerate(self.attributes)}
        table = torch.zeros(len(self.concepts), len(column))
        for row, concept in enumerate(self.concepts):
            table[row, [column[phrase] for phrase in concept.phrases]] = 1
        return table, torch.tensor([is_colour(phrase) for phrase in self.attributes])

    @property
    def base_and_new(self) -> tuple[int, ...]:
        """The downstream classes in their fixed order, base classes first: one of each two neighbours by frequency.

        So base and new classes are equally familiar to the CLIP, and a difference between them is what training adds.
        """
        generator = stream(SEED, "base and new")
        pairs = torch.tensor(sorted(self.classes, key=self.ranks.__getitem__)).view(-1, 2)  # [60, 2]
        first = torch.randint(2, (len(pairs), 1), generator=generator)
        halves = [pairs.gather(1, side)[:, 0] for side in (first, 1 - first)]
        shuffled = [half[torch.randperm(len(half), generator=generator)] for half in halves]
        return tuple(torch.cat(shuffled).tolist())

    def sprites(self) -> tuple[Sprites, Tensor]:
        """The drawings of pretraining and their rows [K, 4]: three seen artists and the single-colour one, or -1."""
        order = [concept.row for concept in self.concepts]
        pixels = torch.cat([self.rasters.pixels[artist][order] for artist in (*SEEN, MONO)])
        count = len(order)
        rows = torch.arange(4 * count).reshape(4, count).T.clone()  # [K, 4]
        rows[~self.rasters.drawn[MONO][order], 3] = -1
        rows[list(self.classes), 3] = -1
        return Sprites(pixels, torch.arange(4 * count) >= 3 * count), rows

    def other_classes(self, seed: int, *, classes: int = 60, train: int = 16) -> Dataset:
        """A data set in the look of `emoji` of concepts that are no downstream classes, the seen artists in turn."""
        generator = stream(seed, "other classes")
        free = torch.tensor(sorted(set(range(len(self.concepts))) - set(self.classes)))
        chosen = free[torch.randperm(len(free), generator=generator)[:classes]].tolist()
        names = tuple(self.concepts[number].name for number in chosen)
        sprites, table = self.sprites()
        rows = [Address("other classes", "train", "", name, number) for name in names for number in range(train)]

        def render(seed: int, address: Address) -> Tensor:
            concept = chosen[names.index(address.concept)]
            return render_single(address.draws(seed), sprites, int(table[concept, address.number % len(SEEN)]))

        return Dataset(
            name="other classes",
            source=RenderedImages(seed, tuple(rows), render),
            space=LabelSpace(names),
            targets=torch.arange(classes).repeat_interleave(train),
            splits=("train",) * len(rows),
            domains=("",) * len(rows),
            base=tuple(range(classes)),
        )


def is_colour(phrase: str) -> bool:
    """Whether an attribute names a colour, which grey, hue-rotated and single-colour drawings do not show."""
    return any(word in COLOURS for word in phrase.split())


def plain_name(label: str) -> str:
    """A CLDR name in lower-case ASCII letters and digits: "woman’s hat" -> "womans hat"."""
    return re.sub("[^a-z0-9 ]", "", label.lower().replace("-", " ")).strip()


def load_vocabulary(cache: Path) -> Vocabulary:
    """Read drawings and names (fetched if absent), parts, and measure the rest; the same on every machine."""
    rasters = load_rasters(cache)
    rows = [
        row
        for row, one in enumerate(rasters.emoji)
        if one.subgroup in KINDS
        and not re.search("clock|thirty", one.label)
        and all(rasters.drawn[artist][row] for artist in SEEN)
    ]
    emoji = [rasters.emoji[row] for row in rows]
    keywords, parts = _keywords(emoji), _read_parts()
    concepts = tuple(
        Concept(
            name=(name := plain_name(one.label)),
            kind=KINDS[one.subgroup],
            parts=parts[one.subgroup, name],
            measured=measured_attributes([rasters.pixels[artist][row] for artist in _colour_artists(rasters, row)]),
            keywords=own,
            row=row,
        )
        for row, one, own in zip(rows, emoji, keywords, strict=True)
    )
    classes = _choose_classes(concepts, rasters)
    return Vocabulary(concepts, classes, _draw_ranks(len(concepts), classes), rasters)


def _colour_artists(rasters: Rasters, row: int) -> list[str]:
    return [artist for artist in rasters.pixels if artist != MONO and rasters.drawn[artist][row]]


def _read_parts() -> Mapping[tuple[str, str], tuple[str, ...]]:
    """(subgroup, name) -> parts, "a beak" as "has a beak" because FedMVP's rule reads "which is a beak" otherwise."""
    table = tomllib.loads((files("fedprompt.demo.pretraining") / "parts.toml").read_text())
    return {
        (subgroup, name): tuple(re.sub("^(an? )", r"has \1", part) for part in parts.split(", ") if part)
        for subgroup, entries in table.items()
        for name, parts in entries.items()
    }


def _keywords(emoji: Sequence[Emoji]) -> list[tuple[str, ...]]:
    """Per emoji up to three CLDR keywords that some others share and its name does not contain."""
    users = Counter(word for one in emoji for word in set(one.keywords))
    low, high = KEYWORD_USERS
    known = {
        word
        for word, count in users.items()
        if low <= count <= high and re.fullmatch("[a-z]{3,}", word) and word not in VAGUE_KEYWORDS.split()
    }
    found = []
    for one in emoji:
        own = [word for word in dict.fromkeys(one.keywords) if word in known - set(plain_name(one.label).split())]
        found.append(tuple(sorted(own, key=lambda word: -users[word])[:3]))
    return found


def _choose_classes(concepts: Sequence[Concept], rasters: Rasters) -> tuple[int, ...]:
    """The downstream classes, shuffled."""
    wanted = {name.strip() for name in CANDIDATES.replace("\n", " ").split(",")}
    found = [
        number
        for number, concept in enumerate(concepts)
        if concept.name in wanted
        and len(concept.parts) >= 2
        and all(rasters.drawn[artist][concept.row] for artist in (*SEEN, *UNSEEN))
    ]
    order = torch.randperm(len(found), generator=stream(SEED, "classes"))[:DOWNSTREAM]
    return tuple(found[position] for position in order.tolist())


def _draw_ranks(count: int, classes: Sequence[int]) -> tuple[int, ...]:
    """Frequency ranks: the downstream classes spread over HEAD to the end, all others on the rest."""
    generator = stream(SEED, "ranks")
    slots = HEAD + torch.randperm(count - HEAD, generator=generator)[: len(classes)]
    taken, ranks = set(slots.tolist()), torch.empty(count, dtype=torch.long)
    ranks[list(classes)] = slots
    others = [number for number in range(count) if number not in set(classes)]
    free = torch.tensor([slot for slot in range(count) if slot not in taken])
    ranks[others] = free[torch.randperm(len(free), generator=generator)]
    return tuple(ranks.tolist())
