"""The server: an OpenAI-compatible API over an engine, and a chatbot over the documents of a store.

`server` listens. A request comes in through `gate` (who may ask, how much), `app` names the routes, `service` answers it,
`openai_api` is the form of requests and responses, `answers` are of the model alone or from the documents, `streaming`
brings them to the client. `uploads` keeps documents and indexes them in the background, `metrics` counts, and `errors` are
what clients are told. `pip install 'llma-rag[serve]'` brings what it needs.
"""

from llma_rag.serving.app import create_app
from llma_rag.serving.server import Server
from llma_rag.serving.service import ServerSettings
from llma_rag.serving.uploads import Uploads

__all__ = ["Server", "ServerSettings", "Uploads", "create_app"]
