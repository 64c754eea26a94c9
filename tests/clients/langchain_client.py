"""LangChain against a live `saferl serve smollm2-135m`.

    pip install langchain-openai && python tests/clients/langchain_client.py http://127.0.0.1:8000/v1
"""

import sys

from langchain_openai import ChatOpenAI
from pydantic import BaseModel


class City(BaseModel):
    """A city."""

    name: str
    large: bool


def model(tokens):
    return ChatOpenAI(
        base_url=sys.argv[1], api_key="none", model="smollm2-135m", max_tokens=tokens, seed=1, max_retries=0
    )


prompt = "Say hello in one short sentence."
whole = model(24).invoke(prompt)
streamed = "".join(chunk.content for chunk in model(24).stream(prompt))
city = model(120).with_structured_output(City, method="json_schema").invoke("Name a city.")
print(repr(whole.content), whole.usage_metadata["total_tokens"], city)
assert whole.content and streamed == whole.content
assert len(model(8).batch(["a", "b", "c"])) == 3
