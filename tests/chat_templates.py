"""Chat templates for the tests, each after the manner of a kind of model, and a tokenizer with their special tokens."""

import json

import random_models

import llorch

CHATML = """\
{%- if messages[0]['role'] != 'system' %}
    {{- '<|im_start|>system\\nYou answer in few words.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] | trim + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and not enable_thinking %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""

# A date, tools as JSON with an indent, a namespace, a macro, calls of tools and their results, a generation block.
LLAMA3 = """\
{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "01 Jan 2025" %}
    {%- endif %}
{%- endif %}
{%- macro header(role) %}{{ '<|start_header_id|>' ~ role ~ '<|end_header_id|>\\n\\n' }}{% endmacro %}
{%- set ns = namespace(system='', calls=0) %}
{%- if messages[0].role == 'system' %}
    {%- set ns.system = messages[0].content | trim %}
    {%- set messages = messages[1:] %}
{%- endif %}
{{- header('system') }}
{{- 'Date: ' + date_string + '\\n\\n' }}
{%- if tools is not none %}
    {{- 'You can call these functions:\\n\\n' }}
    {%- for tool in tools %}
        {{- tool | tojson(indent=4) }}
        {{- '\\n\\n' }}
    {%- endfor %}
{%- endif %}
{{- ns.system }}
{{- '<|eot_id|>' }}
{%- for message in messages %}
    {%- if message.tool_calls is defined and message.tool_calls %}
        {%- set ns.calls = ns.calls + 1 %}
        {%- for call in message.tool_calls %}
            {{- header('assistant') }}
            {{- '{"name": "' + call.function.name + '", "parameters": ' + call.function.arguments | tojson + '}' }}
            {{- '<|eot_id|>' }}
        {%- endfor %}
    {%- elif message.role == 'tool' %}
        {{- header('ipython') }}
        {%- if message.content is mapping or message.content is iterable and message.content is not string %}
            {{- message.content | tojson }}
        {%- else %}
            {{- message.content }}
        {%- endif %}
        {{- '<|eot_id|>' }}
    {%- elif message.role == 'assistant' %}
        {{- header('assistant') }}
        {%- generation %}{{ message.content | trim }}{{ '<|eot_id|>' }}{%- endgeneration %}
    {%- else %}
        {{- header(message.role) }}{{ message.content | trim }}{{ '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- header('assistant') }}
{%- endif %}
"""

# Turns must alternate; break and continue; lstrip_blocks and trim_blocks without a minus.
MISTRAL = """\
{{ bos_token }}{% set start = 0 %}
{% if messages[0]['role'] == 'system' %}
    {% set system = messages[0]['content'] %}
    {% set start = 1 %}
{% endif %}
{% for message in messages[start:] %}
    {% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{ raise_exception('Turns of user and assistant must alternate, user first; message ' ~ loop.index ~ ' is '
                           ~ message['role']) }}
    {% endif %}
    {% if not message['content'] %}{% continue %}{% endif %}
    {% if message['role'] == 'user' %}
        {% if loop.last and system is defined %}
[INST] {{ system + '\\n\\n' + message['content'] }} [/INST]{% else %}
[INST] {{ message['content'] }} [/INST]{% endif %}
    {% else %}
 {{ message['content'] | trim }}{{ eos_token }}{% endif %}
    {% if loop.index > 60 %}{% break %}{% endif %}
{% endfor %}
"""

# No system's turn; the assistant has another name; content may be a list of parts.
GEMMA = """\
{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {{ raise_exception("This model has no system's turn") }}
{%- endif -%}
{%- for message in messages -%}
    {%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}
    {{ '<start_of_turn>' ~ role ~ '\\n' }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- else -%}
        {%- for part in message['content'] -%}
            {%- if part['type'] == 'text' -%}{{ part['text'] | trim }}
            {%- else -%}[{{ part['type'] | upper }}]{%- endif -%}
        {%- endfor -%}
    {%- endif -%}
    {{ '<end_of_turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<start_of_turn>model\\n' }}{%- endif -%}
"""

# Reasoning is cut out of older answers, by looking for its tokens in them; roles stand within special tokens.
REASONING = """\
{%- for message in messages -%}
{{ '<|' + message.role + '|>' }}
{%- set content = message.content -%}
{%- if message.role == 'assistant' and '</think>' in content -%}
    {%- set reasoning = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') -%}
    {%- set content = content.split('</think>')[-1].lstrip('\\n') -%}
    {%- if loop.last %}{{ '<think>\\n' + reasoning + '\\n</think>\\n\\n' }}{% endif -%}
{%- endif -%}
{{ content }}{{ '<|end|>\\n' }}
{%- endfor -%}
{%- if documents -%}{{ documents | map(attribute='text') | join('; ') }}{%- endif -%}
{%- if add_generation_prompt %}{{ '<|assistant|>' }}{% endif -%}
"""

TEMPLATES = {"chatml": CHATML, "llama3": LLAMA3, "mistral": MISTRAL, "gemma": GEMMA, "reasoning": REASONING}
SPECIAL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>",
           "<start_of_turn>", "<end_of_turn>", "<|user|>", "<|system|>", "<|assistant|>", "<|end|>"]  # fmt: skip
PLAIN = ["<think>", "</think>", "[INST]", "[/INST]", "\n\n"]  # added tokens that aren't special


def library(kind="bytes"):
    """A small tokenizer: of bytes, or as SentencePiece's are, with a space before every text and byte fallback."""
    import tokenizers
    from tokenizers import decoders, models, normalizers, pre_tokenizers

    if kind == "bytes":
        letters = sorted(pre_tokenizers.ByteLevel.alphabet())
        merges = [("Ġ", "t"), ("h", "e"), ("Ġt", "he"), ("|", ">"), ("<", "|"), ("e", "n"), ("en", "d"), ("u", "s")]
        tokens = [*SPECIAL, *letters, *("".join(pair) for pair in merges)]
        made = tokenizers.Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = decoders.ByteLevel()
    else:
        pieces = [("<unk>", 0.0), *((token, 0.0) for token in SPECIAL), ("▁", -3.0), ("▁the", -5.0), ("us", -5.0)]
        pieces += [(f"<0x{i:02X}>", -20.0) for i in range(256)]
        pieces += [(chr(i), -4.0) for i in range(33, 127)]
        made = tokenizers.Tokenizer(models.Unigram(pieces, 0, byte_fallback=True))
        made.normalizer = normalizers.Sequence([normalizers.Replace(" ", "▁")])
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    made.add_special_tokens([tokenizers.AddedToken(token, normalized=False, special=True) for token in SPECIAL])
    made.add_tokens([tokenizers.AddedToken(token, normalized=False) for token in PLAIN])
    return made


def gguf_metadata(made, template):
    """What a GGUF file says of the tokenizer of bytes."""
    tokens = sorted(made.get_vocab(with_added_tokens=True).items(), key=lambda pair: pair[1])
    kinds = [3 if token in SPECIAL else 4 if token in PLAIN else 1 for token, _ in tokens]
    merges = json.loads(made.to_str())["model"]["merges"]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": [token for token, _ in tokens],
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.merges": [" ".join(pair) for pair in merges],
        "tokenizer.ggml.bos_token_id": SPECIAL.index("<s>"),
        "tokenizer.ggml.eos_token_id": SPECIAL.index("</s>"),
        "tokenizer.ggml.eot_token_id": SPECIAL.index("<|im_end|>"),
        "tokenizer.chat_template": template,
    }


def save(folder, template, made, **settings):
    """tokenizer.json and tokenizer_config.json, as transformers reads them."""
    made.save(str(folder / "tokenizer.json"))
    entries = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    entries |= {"chat_template": template} if template is not None else {}
    (folder / "tokenizer_config.json").write_text(json.dumps(entries | settings))
    return folder


def random_model(folder, template=CHATML, **settings):
    """A tiny random Llama with the tokenizer of bytes."""
    made = library()
    entries = random_models.LLAMA | {"vocab_size": made.get_vocab_size(), "eos_token_id": 1}
    entries["tie_word_embeddings"] = False  # else it says the same token for ever
    random_models.save(folder, entries, random_models.llama_tensors(entries)[1])
    save(folder, template, made, **settings)
    return llorch.CausalLM.from_pretrained(folder)
