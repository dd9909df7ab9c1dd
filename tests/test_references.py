"""What counts as a reference, in which order, and the memory of earlier answers."""

from __future__ import annotations

import pytest
from langchain_core.documents import Document
from llama_index.core.schema import NodeWithScore, TextNode

from llma_rag.provenance import Reference
from llma_rag.references import AnswerMemory, as_reference, gather
from llma_rag.retrieval import Chunk
from tests.letters import LetterEmbedder
from tests.test_langchain_standard import LetterEmbeddings


@pytest.mark.parametrize(
    "item",
    [
        Document("At nine.", metadata={"source": "a"}),
        Document("At nine.", metadata={"source": "a"}).model_dump(),
        {"page_content": "At nine.", "metadata": {"source": "a"}},
        TextNode(text="At nine.", metadata={"source": "a"}),
        NodeWithScore(node=TextNode(text="At nine.", metadata={"source": "a"}), score=0.5),
        Reference("At nine.", {"source": "a"}),
    ],
)
def test_documents_of_every_framework_are_references(item):
    assert as_reference(item) == Reference("At nine.", {"source": "a"})


def test_a_mapping_without_metadata_is_a_reference():
    assert as_reference({"page_content": "x", "metadata": None}) == Reference("x")


@pytest.mark.parametrize("item", [7, None, {"text": "x"}, {"page_content": 7}, Chunk("x").place])
def test_anything_else_is_an_error(item):
    with pytest.raises(TypeError, match="a reference must be a string, a document"):
        as_reference(item)


def test_groups_come_in_their_order_and_each_text_once():
    first, second = Document("b", metadata={"from": "call"}), ["a", "b", "", "a"]
    assert gather([first], None, second) == [Reference("b", {"from": "call"}), Reference("a")]
    for single in ("text", {"page_content": "x"}):
        with pytest.raises(TypeError, match="must be a list, got a single one"):
            gather(single)


def test_the_first_group_keeps_its_positions():
    assert gather(["a", "", "a", "b"], ["b", "c"]) == [Reference(text) for text in ("a", "", "a", "b", "c")]


def test_a_source_stays_one_where_an_earlier_answer_says_the_same():
    earlier, document = Reference("At nine.", draft_only=True), Reference("At nine.", {"source": "a"})
    assert gather([], [document], [earlier]) == [document]
    assert gather([], [earlier], [document]) == [earlier, document]


def test_answers_to_similar_questions_are_found_again(tmp_path):
    with AnswerMemory(LetterEmbedder(), tmp_path / "answers", min_similarity=0.9) as memory:
        memory.add("when does it open", "At nine.")
        memory.add("zzz", "Sleep.")
        memory.add("  ", "nothing")
        memory.add("nothing", "")
        assert len(memory) == 2
        assert [one.text for one in memory.nearest("it does open when")] == ["At nine."]
        assert memory.nearest("qqq") == memory.nearest("") == []
        memory.add("when does it open", "At ten.")
    with AnswerMemory(LetterEmbeddings(), tmp_path / "answers") as memory:
        (found,) = memory.nearest("when does it open", k=1)
        assert found.text == "At ten."
        assert found.draft_only
        assert found.metadata == {"earlier_question": "when does it open", "similarity": 1.0}
