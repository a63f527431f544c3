"""vocabulary.py: names and verticals become classes, and what is not there is answered with what is near."""

import pytest

from aart_lib.data.formats import SPECS
from aart_lib.data.vocabulary import chosen, read_vocabulary

TABLE = """Index,TrainVideoCount,KnowledgeGraphId,Name,Vertical1,Vertical2,Vertical3
0,788288,/m/03bt1gh,Game,Games,,
1,539945,/m/01mw1,"Concert, live",Arts & Entertainment,Games,NULL
2,3,/m/0,,Vehicles,,
"""


@pytest.fixture(params=["utf-8", "utf-8-sig"])  # the second is what Excel writes
def known(tmp_path, request):
    (tmp_path / "vocabulary.csv").write_text(TABLE, encoding=request.param)
    return read_vocabulary(tmp_path / "vocabulary.csv")


def test_names_and_verticals_become_classes_and_unknown_ones_are_answered_with_what_is_near(known):
    assert known.names == {0: "Game", 1: "Concert, live"}
    assert known.classes("game") == [0] and known.classes(" GAMES ") == [0, 1] and known.classes("vehicles") == [2]
    with pytest.raises(ValueError, match="called 'conc'; names with these letters: Concert, live"):
        known.classes("conc")
    with pytest.raises(ValueError, match="called 'zebra'; verticals: Arts & Entertainment, Games, Vehicles"):
        known.classes("zebra")


def test_labels_are_a_number_or_names_and_a_file_without_names_is_refused(tmp_path):
    spec = SPECS["synthetic"]
    assert chosen(None, spec, None) is None and chosen("7", spec, None) == chosen(7, spec, None) == 7
    assert chosen("Game", spec, None) == [0]
    with pytest.raises(ValueError, match=r"has no vocabulary\.csv with 3862 classes, .* download vocabulary --out"):
        chosen("Game", SPECS["yt8m-frame"], tmp_path)
    (tmp_path / "vocabulary.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="is not a vocabulary: it needs the columns Index and Name"):
        read_vocabulary(tmp_path / "vocabulary.csv")


def test_genuine_vocabularies_are_read(real_data):
    spec = SPECS["yt8m-frame"]
    assert chosen("Food", spec, real_data) == [11]
    games = chosen("Games", spec, real_data)
    assert len(games) > 300 and chosen("Games,Food", spec, real_data) == [*games, *({11} - set(games))]
    assert chosen("Speech, Music", SPECS["audioset"], real_data) == [0, 137]
