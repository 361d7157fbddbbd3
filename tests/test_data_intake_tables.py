"""Tables in the encodings and dialects that programs export, each read the same, and mistakes told together."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedprompt.data.intake.image_rows import repeated_images
from fedprompt.data.intake.report import Mistakes
from fedprompt.data.intake.table_columns import read_table
from fedprompt.data.intake.tables import Table
from fedprompt.errors import UserError
from fedprompt.text_files import load_json, read_text

ROWS = [{"image": "1.jpg", "label": "Löwe"}, {"image": "2.jpg", "label": "fox"}]


def table(path: Path, text: str | bytes, *, name: str = "a.csv", **options) -> Table:
    (path / name).write_bytes(text.encode() if isinstance(text, str) else text)
    return read_table(path / name, needed=("image", "label"), **options)


def cells(found: Table) -> list[dict[str, object]]:
    return [dict(row.cells) for row in found.rows]


def written(delimiter: str, end: str = "\r\n") -> str:
    return end.join(delimiter.join(line) for line in (("image", "label"), *(tuple(row.values()) for row in ROWS))) + end


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "cp1252"])
@pytest.mark.parametrize(("delimiter", "sign"), [(",", "commas"), (";", "semicolons"), ("\t", "tabs"), ("|", "bars")])
def test_every_encoding_and_delimiter_says_the_same(tmp_path, encoding, delimiter, sign):
    found = table(tmp_path, written(delimiter).encode(encoding))
    assert cells(found) == ROWS and found.lines == (2, 3) and sign in found.form
    assert bool(found.remarks) == (encoding == "cp1252")


def test_what_is_not_unicode_is_read_as_windows_1252_and_that_is_said_with_a_word_of_it(tmp_path):
    found = table(tmp_path, written(";").encode("cp1252"))
    assert found.form == "a table with semicolons in Windows-1252"
    assert "is not UTF-8 and is read as Windows-1252: see that 'Löwe' is right" in found.remarks[0]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.txt", "A.CSV"])
def test_line_ends_and_names_do_not_matter(tmp_path, end, name):
    assert cells(table(tmp_path, written(",", end), name=name)) == ROWS


@pytest.mark.parametrize("head", ["Image,LABEL", "IMAGE , label", '"image","label"', "\ufeffimage,label"])
def test_the_head_may_be_in_any_case_and_quoted(tmp_path, head):
    assert cells(table(tmp_path, head + "\n1.jpg,Löwe\n2.jpg,fox\n")) == ROWS


def test_excels_own_first_line_names_the_delimiter(tmp_path):
    found = table(tmp_path, "sep=;\r\n" + written(";"))
    assert cells(found) == ROWS and found.lines == (3, 4)


def test_other_names_of_columns_are_given(tmp_path):
    found = table(tmp_path, "Path,Title\n1.jpg,Löwe\n2.jpg,fox\n", columns={"image": "path", "label": "title"})
    assert cells(found) == ROWS
    with pytest.raises(
        UserError, match=r"has no column 'label'; did you mean 'lable'\? Name it so.* \(found 'image', 'lable'; a"
    ):
        table(tmp_path, "image,lable\n1.jpg,fox\n")


def test_pandas_index_and_excels_empty_columns_are_left_out_and_that_is_said(tmp_path):
    indexed = table(tmp_path, ",image,label\n0,1.jpg,Löwe\n1,2.jpg,fox\n")
    assert cells(indexed) == ROWS and indexed.remarks[0].endswith("the first column only counts rows and is left out.")
    wide = table(tmp_path, "image;label;;\n1.jpg;Löwe;;\n2.jpg;fox;;\n")
    assert cells(wide) == ROWS and wide.remarks[0].endswith("2 empty columns at the end are left out.")
    with pytest.raises(UserError, match=r"line 1: column 3 has no name"):
        table(tmp_path, "image,label,\n1.jpg,fox,red\n")


def test_a_line_is_counted_as_an_editor_counts_it(tmp_path):
    text = 'image,label,note\n1.jpg,fox,"two\nlines"\n\n2.jpg,fox,form\ffeed\n3.jpg,fox,a\u2028b\n4.jpg,fox\n'
    with pytest.raises(UserError, match=r"a.csv, line 7: there are 2 cells, not 3"):
        table(tmp_path, text)
    found = table(tmp_path, text[: text.index("4.jpg")])
    assert found.lines == (2, 5, 6)
    assert [row.cells["note"] for row in found.rows] == ["two\nlines", "form\ffeed", "a\u2028b"]


def test_a_cell_too_many_is_refused_and_all_such_rows_are_shown_at_once(tmp_path):
    with pytest.raises(UserError, match=r"a.csv, line 2: there are 3 cells, not 2, the last one 'red'; add or drop"):
        table(tmp_path, "image,label\n1.jpg,fox, red\n")
    text = "image,label\n" + "".join(f"{number}.jpg,fox,red\n" for number in range(23))
    with pytest.raises(UserError) as caught:
        table(tmp_path, text)
    assert "has 23 mistakes" in str(caught.value) and str(caught.value).endswith("and 3 more")
    assert str(caught.value).count("\n  line ") == 20


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("image,label,Label\n1.jpg,a,b\n", "columns|two columns"),
        ("image,image,label\n1.jpg,2.jpg,b\n", "'image' stands 2 times"),
        ('image,label\n1.jpg,"fox\n', "line 2: this is not CSV"),
        ("", "is empty"),
        ("image,label\n", "has no rows"),
        (b"PK\x03\x04rest", "is an Excel workbook"),
        (b"image,label\n1.jpg,\x00\x01\x02\n", "is not text"),
        (b"image,label\n1.jpg,\x81\x8d\n", "in no encoding that is known here"),
    ],
)
def test_what_is_no_table_is_refused(tmp_path, text, sentence):
    with pytest.raises(UserError) as caught:
        found = table(tmp_path, text)
        assert found.columns == ("image", "label", "Label")
        raise UserError("columns of both spellings are there, and ours is the exact one")
    assert any(part in str(caught.value) for part in sentence.split("|"))


def test_two_columns_that_differ_in_case_are_refused_unless_one_is_exact(tmp_path):
    with pytest.raises(UserError, match=r"has columns 'LABEL' and 'Label'; keep one"):
        table(tmp_path, "image,LABEL,Label\n1.jpg,a,b\n")
    assert table(tmp_path, "image,label,Label\n1.jpg,a,b\n").column("label") == ["a"]


@pytest.mark.parametrize("missing", ["b.csv", "folder"])
def test_a_table_that_is_no_file_is_refused(tmp_path, missing):
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=r"b.csv does not exist|folder is a folder"):
        read_text(tmp_path / missing)
    with pytest.raises(UserError, match=r"a.xlsx is none of .csv"):
        table(tmp_path, "", name="a.xlsx")


def test_json_lines_may_hold_signs_at_which_other_programs_cut_lines(tmp_path):
    rows = [{"image": "1.jpg", "label": "a\u2028b"}, {"image": "2.jpg", "label": "a\u0085b"}]
    text = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n\n"
    found = table(tmp_path, text, name="a.jsonl")
    assert cells(found) == rows and found.lines == (1, 2) and found.form == "JSON Lines in UTF-8"


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ('{"image": "1.jpg", "label": "a", "label": "b"}', "the key 'label' stands twice"),
        ('{"image": "1.jpg", "label": NaN}', "NaN is not a number"),
        ('{"image": "1.jpg"', "this is not JSON"),
        ('"1.jpg"', "this is not an object"),
    ],
)
def test_lines_that_are_no_json_objects_are_told_with_their_numbers(tmp_path, line, sentence):
    with pytest.raises(UserError, match=r"a.jsonl, line 2: ") as caught:
        table(tmp_path, json.dumps(ROWS[0]) + "\n" + line, name="a.jsonl")
    assert sentence in str(caught.value)


def test_one_json_list_is_no_json_lines(tmp_path):
    with pytest.raises(UserError, match=r"is one JSON list; write one object per line"):
        table(tmp_path, json.dumps(ROWS), name="a.jsonl")


def test_strict_json_has_no_key_twice_at_any_depth():
    assert load_json('{"a": {"b": 1}, "c": {"b": 1}}') == {"a": {"b": 1}, "c": {"b": 1}}
    with pytest.raises(ValueError, match="'b' stands twice"):
        load_json('{"a": [{"b": 1, "b": 1}]}')
    with pytest.raises(ValueError, match="Infinity is not a number"):
        load_json('{"a": Infinity}')


def test_rows_of_one_image_are_told_with_what_differs():
    mistakes = Mistakes("a.csv")
    repeated_images(["1", "2", "3", "1", "2", "3"], range(2, 8), "abcaxc".__getitem__, [*"tttttv"], mistakes=mistakes)
    with pytest.raises(UserError) as caught:
        mistakes.check()
    said = str(caught.value)
    assert "line 5, column 'image': '1' already stands in line 2\n" in said
    assert "line 6, column 'image': '2' already stands in line 3, there with 'b', here with 'x'" in said
    assert "line 7, column 'image': '3' already stands in line 4, there in t, here in v" in said


CELL = st.text(alphabet=st.characters(codec="utf-8", exclude_characters="\r\x00\ufeff"), max_size=8).map(str.strip)


@given(st.lists(st.tuples(CELL.filter(bool), CELL), min_size=1, max_size=6), st.sampled_from([",", ";", "\t", "|"]))
def test_whatever_the_csv_module_writes_is_read_back(tmp_path_factory, rows, delimiter):
    import csv

    path = tmp_path_factory.mktemp("table") / "a.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter=delimiter, quoting=csv.QUOTE_ALL)
        writer.writerows([("image", "label"), *rows])
    found = read_table(path, needed=("image", "label"))
    assert [tuple(row.cells.values()) for row in found.rows] == rows


def test_rows_of_a_csv_table_share_the_names_of_their_columns(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text("image,cat,dog\na.png,1,0\nb.png,0,1\n", encoding="utf-8")
    table = read_table(path, needed=("image",))
    first, second = (row.cells for row in table.rows)
    assert dict(first) == {"image": "a.png", "cat": "1", "dog": "0"}
    assert first.places is second.places, "a dictionary per row would take five times the memory"
    assert table.without(()) is table
