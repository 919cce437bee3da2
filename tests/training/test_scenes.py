"""A picture shows what its caption says."""

import numpy as np

from deployments.models.size import Size
from training.measures import is_shape, of_colour
from training.painter import LONGEST, tokenizer, tokens_of
from training.scenes import COLOURS, SHAPES, draw_scene

VOCABULARY = tokenizer()


def _scenes(count: int) -> list[tuple[str, np.ndarray]]:
    rng = np.random.default_rng(3)
    return [draw_scene(rng, Size(144, 80)) for _ in range(count)]


def test_the_colours_and_the_shape_of_a_caption_are_in_its_picture() -> None:
    alone = [each for each in _scenes(60) if each[0].count(" a") < 2 and each[0].split()[2] in SHAPES]
    assert len(alone) > 10
    for caption, picture in alone:
        _, colour, shape, _, _, ground, _ = caption.split()
        assert is_shape(of_colour(picture, colour), shape), caption
        assert of_colour(picture, ground).mean() > 0.5, caption


def test_a_caption_follows_from_its_source_of_chance() -> None:
    for (caption, picture), (other, same) in zip(_scenes(5), _scenes(5), strict=True):
        assert caption == other
        assert np.array_equal(picture, same)


def test_a_word_of_the_vocabulary_is_one_token_and_any_prompt_has_tokens() -> None:
    for word in (*COLOURS, *SHAPES, "sunset", "hills", "boat"):
        assert VOCABULARY.tokenize(word) == [f"{word}</w>"]
    assert tokens_of(VOCABULARY, ["Ein Boot 😀"]).shape == (1, LONGEST)
    assert (
        VOCABULARY.decode(VOCABULARY("a red boat, naïve").input_ids, skip_special_tokens=True) == "a red boat , naïve"
    )


def test_a_word_has_the_same_number_however_often_the_tokenizer_is_made() -> None:
    for _ in range(8):  # chance would repeat itself once in a while
        assert tokenizer().get_vocab() == VOCABULARY.get_vocab()


def test_every_caption_is_read_to_its_end() -> None:
    captions = [caption for caption, _ in _scenes(200)]
    assert (tokens_of(VOCABULARY, captions)[:, -1] == VOCABULARY.pad_token_id).all()
