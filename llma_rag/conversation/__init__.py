"""A chatbot over documents, below terminal, page and server: history, retrieval, refusal, budgets. Knows no HTTP.

`chatbot` answers questions, `condensing` makes follow-up questions stand alone, `layout` writes prompts whose beginning
stays from turn to turn, `turns` are what is remembered, and `keeping` remembers them in SQLite.
"""

from llma_rag.conversation.chatbot import Answering, Chatbot, ChatSettings
from llma_rag.conversation.condensing import standalone_question
from llma_rag.conversation.keeping import ConversationStore
from llma_rag.conversation.turns import Conversation, Source, Turn

__all__ = [
    "Answering",
    "ChatSettings",
    "Chatbot",
    "Conversation",
    "ConversationStore",
    "Source",
    "Turn",
    "standalone_question",
]
