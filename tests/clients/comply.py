"""llm-comply, whose requests set neither seed nor length, asking for temperature 0: the same replies at every run."""

import sys

import llm_comply.http
from llm_comply.cli import main

client = llm_comply.http._get_client()
post = client.post
client.post = lambda url, json, **rest: post(url, json={"temperature": 0} | json, **rest)
sys.exit(main())
