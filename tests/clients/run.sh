#!/usr/bin/env bash
# Other people's clients against a live `saferl serve`, and schemathesis against its description. .ci/run calls it:
#
#     tests/clients/run.sh PROGRAM FOLDER     FOLDER keeps what pip and npm fetch, a model with tools, and the servers' logs
#
# What cannot be fetched is left out with a line that says so. Every other failure is one.
set -euo pipefail
mkdir -p "$2"
program=$(realpath "$1") folder=$(realpath "$2")
cd "$(dirname "${BASH_SOURCE[0]}")"
bin=$folder/python/bin
url=http://127.0.0.1:8917
server=

left_out() { printf 'left out: %s\n' "$1"; }
stop() { if [[ -n $server ]]; then kill "$server" && wait "$server" || true; server=; fi; }
trap stop EXIT
# serve ARGUMENTS...: stops the server before, if any, and waits until this one answers.
serve() {
  stop
  "$program" serve --port "${url##*:}" "$@" 2>"$folder/serve.log" & server=$!
  for _ in $(seq 120); do
    if curl --silent --fail "$url/health" >/dev/null; then return 0; fi
    if ! kill -0 "$server" 2>/dev/null; then break; fi
    sleep 1
  done
  cat "$folder/serve.log"
  return 1
}
# pip_has PACKAGE...: whether they are there, after trying to fetch them.
pip_has() {
  [[ -x $bin/python ]] || python3 -m venv "$folder/python"
  "$bin/pip" install --quiet "$@" || { left_out "${*%%==*}: it could not be installed"; return 1; }
}
npm_has() {
  (cd "$folder" && npm install --silent --no-audit --no-fund --prefer-offline "$@") ||
    { left_out "$*: it could not be installed"; return 1; }
}
# Modules are looked for beside the script that imports them.
in_node() { cp "$1" "$folder" && node "$folder/$1" "$url/v1"; }
comply() { "$bin/python" comply.py --base-url "$url/v1" --api-key none --format "$1" --model "$2" --filter "$3"; }

# smollm2-135m with a template that knows tools, which its own does not.
tools=$folder/smollm2-tools
[[ -d $tools ]] || "$program" export hf smollm2-135m --dtype bf16 --output "$tools" >/dev/null
cp tools.jinja "$tools/chat_template.jinja"

serve smollm2-135m tiny-qwen3 "$tools" --guard built-in
if pip_has openai==3.57.0; then
  "$bin/python" openai_client.py "$url/v1" --guard
fi
if pip_has langchain-openai==1.7.4; then
  "$bin/python" langchain_client.py "$url/v1"
fi
if npm_has openai@6.49.0; then
  in_node openai_client.mjs
fi
if npm_has ai@6.0.326 @ai-sdk/openai-compatible@2.0.92; then
  in_node ai_sdk_client.mjs
fi
if pip_has llm-comply==0.5.0; then
  # A small model may talk until its context is full, which takes minutes: a small context.
  serve smollm2-135m "$tools" --cache-tokens 1024
  # Not images, nor tools in responses, which are refused by name; nor effort and summaries of reasoning.
  both=error-handling,streaming-response,streaming-usage,system-prompt,multi-turn,basic-response
  comply openai-chat smollm2-135m "chat-${both//,/,chat-}"
  comply openai-chat smollm2-tools chat-tool-calling
  comply open-responses smollm2-135m "$both,assistant-phase,response-output-phase-schema"
fi

if pip_has schemathesis==4.32.5; then
  # A small model with a small context, so that no request takes long.
  serve tiny-qwen3 --guard built-in --cache-tokens 512
  (cd "$folder" && "$bin/schemathesis" run "$url/openapi.json" --max-examples 20 --generation-deterministic \
    --request-timeout 20 --checks not_a_server_error,status_code_conformance,content_type_conformance)
fi
