"""Decode the same answer with and without references: the same ids, fewer forward passes, less time."""

from llma_rag import Engine

DOCUMENT = """The northern pier is closed from November to March. During these months the boat to the island
leaves from the southern pier at 7:15 and 16:40, and returns at 8:30 and 17:50. Tickets are sold on board,
in cash only. Bicycles travel free of charge as long as there is room on the rear deck."""

engine = Engine.load("smollm2-135m")
messages = [{"role": "user", "content": f"{DOCUMENT}\n\nRepeat the text above."}]
engine.generate(messages, max_tokens=4)  # warm up

with_references = engine.generate(messages, references=[DOCUMENT], max_tokens=96)
without = engine.generate(messages, max_tokens=96, draft=False)

assert with_references.token_ids == without.token_ids
for name, answer in (("with references", with_references), ("without", without)):
    print(
        f"{name}: {answer.completion_tokens} tokens, {answer.forward_passes} forward passes, "
        f"{answer.timings.decode_s:.2f} s"
    )
print(f"{with_references.copied_coverage:.0%} of the text was copied")
