"""The server: an OpenAI-compatible API over an engine, and a chatbot over the documents of a store.

A request comes in through `gate` (who may ask, how much), `app` names the routes, `openai_api` is the form of requests
and responses, `answers` are what is answered by the model alone or from the documents, `uploads` keeps documents and
indexes them in the background, and `metrics` counts. `pip install 'llma-rag[serve]'` brings what it needs.
"""

from llma_rag.serving.app import ServerSettings, create_app

__all__ = ["ServerSettings", "create_app"]
