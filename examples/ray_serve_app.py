"""Replicas of the engine under Ray Serve, each with one answer at a time, a bounded queue before them, and 503 beyond it.

    pip install 'ray[serve]'                  # beside llma_rag
    serve run examples.ray_serve_app:app      # in the repository's root; the port is 8000
    curl -X POST localhost:8000/answer -H 'Content-Type: application/json' \
        -d '{"question": "When is it closed?", "passages": ["The pier is closed in winter."]}'

LLMA_RAG_MODEL names the model, LLMA_RAG_REPLICAS how many replicas there are. A replica holds the model's weights once.
This is an API of its own: `base_url` wants OpenAI's, which `llma-rag serve` has.
"""

import os

from fastapi import FastAPI, HTTPException
from pydantic import BaseModel, ConfigDict, Field
from ray import serve

from llma_rag import ContextLengthError, Engine, RequestOptions, quoting_prompt

http = FastAPI()


class Question(BaseModel):
    """A question and what it is to be answered from."""

    model_config = ConfigDict(extra="forbid")

    question: str
    passages: list[str] = Field(max_length=100)
    max_tokens: int = Field(default=128, ge=1, le=1024)


@serve.deployment(
    num_replicas=int(os.environ.get("LLMA_RAG_REPLICAS", "1")),
    max_ongoing_requests=1,  # a model decodes one answer at a time
    max_queued_requests=8,  # at each HTTP proxy, one a node; more get status 503 at once
)
@serve.ingress(http)
class Answering:
    """One replica: an engine, loaded when the replica starts."""

    def __init__(self, model: str) -> None:
        self.engine = Engine.load(model)

    @http.post("/answer")
    async def answer(self, question: Question) -> dict[str, object]:
        """Answer from the passages; tell what was copied, and what it took."""
        prompt = quoting_prompt(question.question, question.passages)
        options = RequestOptions(references=question.passages, max_tokens=question.max_tokens)
        try:
            async with self.engine.astream(prompt, **options) as stream:  # ends with the request
                made = await stream.result()
        except ContextLengthError as error:
            raise HTTPException(413, str(error)) from error
        spans = [(span.start, span.end, span.reference_index) for span in made.copied_spans]
        return {"answer": made.text, "copied": spans, "forward_passes": made.forward_passes}


app = Answering.bind(os.environ.get("LLMA_RAG_MODEL", "smollm2-135m"))
