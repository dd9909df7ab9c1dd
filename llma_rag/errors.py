"""The exceptions of this library, each with a message that gives the rule, the value and the remedy.

LlmaRagError
├── ModelError          a model cannot be found, fetched, loaded or run exactly
│   └── UnsupportedModelError   its architecture cannot be decoded by fixed-shape steps
├── PromptError         a prompt cannot be rendered for the model
├── ContextLengthError  a prompt does not fit the model's context
├── StoreError          a document store is missing, corrupt or was made by something else
├── DocumentError       a document cannot be read
├── DataError           a data file for the benchmarks does not have the expected form
├── RequestCancelledError   the caller cancelled the request
└── RequestTimeoutError     the answer was not complete in time
"""


class LlmaRagError(Exception):
    """Base of every error that this library raises on purpose."""


class ModelError(LlmaRagError):
    """A model cannot be found, fetched, loaded or run."""


class UnsupportedModelError(ModelError):
    """A model whose architecture cannot be decoded exactly by fixed-shape steps."""


class ServerError(LlmaRagError):
    """A server that answers for us does not answer, or refuses."""


class PromptError(LlmaRagError, ValueError):
    """A prompt that is empty or that the model's chat template does not take."""


class ContextLengthError(LlmaRagError, ValueError):
    """A prompt that leaves no room in the model's context."""


class StoreError(LlmaRagError):
    """A document store that is missing, corrupt, or of another format or embedding model."""


class DocumentError(LlmaRagError):
    """A document that cannot be read."""


class DataError(LlmaRagError):
    """A data file that does not have the expected form."""


class RequestCancelledError(LlmaRagError):
    """The request was cancelled by its caller."""


class RequestTimeoutError(LlmaRagError, TimeoutError):
    """The answer was not complete in time."""
