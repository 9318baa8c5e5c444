"""Where each turn of a chat stands, in templates of several styles, against the same layouts in plain Python."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nnterp_mcp.errors import InvalidRequest
from nnterp_mcp.model.text.chats import render_chat
from nnterp_mcp.model.text.positions import resolve_positions
from nnterp_mcp.model.text.tokenization import EncodedPrompt, encode_prompts
from nnterp_mcp.request.positions import TurnPosition
from nnterp_mcp.verification.tiny import tiny_tokenizer
from tests.model.text.templates import STYLES, Messages, Style

CONTENTS = st.lists(
    st.sampled_from(["Paris", " ", "\n", "é", "日本", "<|im_end|>", "\n<|im_start|>assistant\n", "[/INST]", "</s>"])
    | st.text(max_size=3),
    max_size=5,
).map("".join)
TOKENIZER = tiny_tokenizer()


def chats(style: Style) -> st.SearchStrategy[Messages]:
    """Chats of one to five messages whose contents repeat, are empty, end in spaces and look like templates."""

    def build(contents: list[str], system: bool) -> Messages:
        roles = (["system"] if system and style.system and len(contents) > 1 else []) + ["user", "assistant"] * 3
        return [{"role": role, "content": content} for role, content in zip(roles, contents, strict=False)]

    return st.builds(build, st.lists(CONTENTS, min_size=1, max_size=5), st.booleans()).filter(style.fits)


def encoded(template: str, messages: Messages, tokenizer: Any = TOKENIZER) -> EncodedPrompt:
    """A chat whose last message is over, whoever said it."""
    tokenizer.chat_template = template
    (prompt,) = encode_prompts(tokenizer, [[*messages[:-1], messages[-1] | {"closed": True}]], "tiny")
    return prompt


def refusal(prompt: EncodedPrompt, **asked: Any) -> str:
    with pytest.raises(InvalidRequest) as caught:
        resolve_positions([TurnPosition(**asked)], prompt)
    return caught.value.message


@pytest.mark.parametrize("style", STYLES.values(), ids=STYLES)
@settings(max_examples=50)
@given(data=st.data())
def test_every_content_is_found_and_turns_do_not_overlap(style: Style, data: st.DataObject) -> None:
    messages = data.draw(chats(style))
    prompt = encoded(style.jinja, messages)
    pieces = style.pieces(messages)
    assert prompt.text == "".join(text for text, _ in pieces)
    assert prompt.chat is not None

    start = 0
    taken: set[int] = set()
    for text, turn in pieces:
        if turn is not None:
            assert prompt.chat.content_span(turn) == (start, start + len(text))
            if text:
                tokens = resolve_positions([TurnPosition(turn=turn)], prompt)
                assert tokens == list(range(tokens[0], tokens[-1] + 1))
                said = TOKENIZER.decode([prompt.ids[at] for at in tokens], clean_up_tokenization_spaces=False)
                assert text in said
                assert len(said) <= len(text) + 12, "no more than the parts of two tokens around it"
                assert taken.isdisjoint(tokens)
                taken.update(tokens)
        start += len(text)


@pytest.mark.parametrize("style", STYLES.values(), ids=STYLES)
@settings(max_examples=50)
@given(data=st.data())
def test_what_follows_a_turn_holds_no_content(style: Style, data: st.DataObject) -> None:
    messages = data.draw(chats(style))
    prompt = encoded(style.jinja, messages)
    contents = [set(tokens_or_none(prompt, turn=turn)) for turn in range(len(messages))]

    for turn, (start, end) in following(style, messages):
        after = tokens_or_none(prompt, turn=turn, part="after")
        assert all(start <= prompt.spans[at][0] and prompt.spans[at][1] <= end for at in after)
        inside = {at for at, (first, last) in enumerate(prompt.spans) if first >= start and last <= end}
        assert inside == set(after)
        assert not any(content & set(after) for content in contents)


def following(style: Style, messages: Messages) -> list[tuple[int, tuple[int, int]]]:
    """For each turn, from the end of its content to the next one, by the layout in plain Python."""
    found: list[tuple[int, tuple[int, int]]] = []
    pieces = style.pieces(messages)
    start = 0
    for place, (text, turn) in enumerate(pieces):
        start += len(text)
        if turn is not None:
            rest = ""
            for later, other in pieces[place + 1 :]:
                if other is not None:
                    break
                rest += later
            found.append((turn, (start, start + len(rest))))
    return found


@pytest.mark.parametrize("style", STYLES.values(), ids=STYLES)
@settings(max_examples=30)
@given(data=st.data())
def test_the_assistants_last_words_are_continued(style: Style, data: st.DataObject) -> None:
    messages = data.draw(chats(style).filter(lambda messages: messages[-1]["role"] == "assistant"))
    TOKENIZER.chat_template = style.jinja
    (prompt,) = encode_prompts(TOKENIZER, [messages], "tiny")
    pieces = style.pieces(messages)
    end = max(place for place, (_, turn) in enumerate(pieces) if turn == len(messages) - 1)

    last = messages[-1]["content"]
    if last and last == last.rstrip():  # of spaces at the end, transformers drops more or fewer than the template
        assert prompt.text == TOKENIZER.apply_chat_template(messages, tokenize=False, continue_final_message=True)
    assert prompt.text.rstrip(" ") == "".join(text for text, _ in pieces[: end + 1]).rstrip(" ")
    assert prompt.spans[-1][1] == len(prompt.text)
    for turn in range(len(messages)):
        assert prompt.chat is not None
        assert prompt.chat.content_span(turn) is not None


def test_a_chat_that_cannot_be_continued_is_told_how_to_end() -> None:
    TOKENIZER.chat_template = "{% for m in messages %}{{ m['content'] | length }}{% endfor %}"
    said = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]

    with pytest.raises(InvalidRequest) as caught:
        render_chat(TOKENIZER, said, "tiny")
    assert '"closed": true' in caught.value.next_step
    assert render_chat(TOKENIZER, [said[0], said[1] | {"closed": True}], "tiny").text == "11"


def test_which_of_several_templates_writes_a_chat() -> None:
    tokenizer: Any = tiny_tokenizer()
    said = [{"role": "user", "content": "a"}]
    written = "{% for m in messages %}[{{ m['content'] }}]{% endfor %}"

    for templates in ({"default": written, "rag": "no"}, {"tool_use": written}):
        tokenizer.chat_template = templates
        assert render_chat(tokenizer, said, "tiny").text == "[a]"
    tokenizer.chat_template = {"tool_use": written, "rag": written}
    with pytest.raises(InvalidRequest) as caught:
        render_chat(tokenizer, said, "tiny")
    assert caught.value.message == (
        "tiny has several chat templates ('tool_use', 'rag') and none of them is its default, so a prompt must be text"
    )


def tokens_or_none(prompt: EncodedPrompt, **asked: Any) -> list[int]:
    try:
        return resolve_positions([TurnPosition(**asked)], prompt)
    except InvalidRequest as error:
        if not error.message.endswith("has no tokens."):
            raise
        return []


CHAT = [
    {"role": "system", "content": "Paris"},
    {"role": "user", "content": "Paris or Rome? Paris"},
    {"role": "assistant", "content": "Rome"},
    {"role": "user", "content": "Rome?"},
]


@pytest.fixture
def chat() -> EncodedPrompt:
    return encoded(STYLES["chatml"].jinja, CHAT)


def said(prompt: EncodedPrompt, **asked: Any) -> str:
    return str(TOKENIZER.decode([prompt.ids[at] for at in resolve_positions([TurnPosition(**asked)], prompt)]))


def test_turns_count_from_either_end_and_among_a_role(chat: EncodedPrompt) -> None:
    def tokens(**asked: Any) -> list[int]:
        return resolve_positions([TurnPosition(**asked)], chat)

    assert tokens(turn=-1) == tokens(turn=3) == tokens(role="user", turn=1) == tokens(role="user", turn=-1)
    assert tokens(turn=0) == tokens(role="system")
    assert tokens(role="user") == sorted(tokens(turn=1) + tokens(turn=3))


def test_a_piece_is_looked_for_in_its_turn_alone(chat: EncodedPrompt) -> None:
    start = chat.text.index("Paris or")
    first = resolve_positions([TurnPosition(turn=1, text="Paris")], chat)
    second = resolve_positions([TurnPosition(turn=1, text="Paris", occurrence=-1)], chat)

    assert chat.spans[first[0]][0] == start
    assert chat.spans[second[-1]][1] == start + len("Paris or Rome? Paris")
    assert resolve_positions([TurnPosition(role="user", text="Rome", occurrence=1)], chat)[0] > second[-1]
    assert said(chat, turn=1, part="after", text="<|im_end|>").strip().startswith("<|im_end|>")


def test_what_does_not_exist(chat: EncodedPrompt) -> None:
    (plain,) = encode_prompts(TOKENIZER, ["The capital"], "tiny")

    assert refusal(plain, turn=0) == "prompt 0 is plain text and has no turns"
    assert refusal(chat, turn=4) == "turn 4 does not exist: prompt 0 has turns 0 to 3."
    assert refusal(chat, role="user", turn=2) == (
        "turn 2 of the role 'user' does not exist: prompt 0 has turns 0 to 1 of the role 'user'."
    )
    assert refusal(chat, role="tool") == (
        "prompt 0 has no turn of the role 'tool': its roles are system, user, assistant."
    )
    assert refusal(chat, turn=2, text="Paris") == (
        "occurrence 0 of 'Paris' does not exist: it stands 0 times in turn 2 of prompt 0."
    )
    assert refusal(encoded(STYLES["chatml"].jinja, [{"role": "user", "content": ""}]), turn=0) == (
        "turn 0 of prompt 0 has no tokens."
    )


@pytest.mark.parametrize(
    "written",
    [
        "m['content'] | upper",
        "m['content'].split('</think>')[-1]",
        "m['content'] + m['content']",
        "'' if m['role'] == 'user' else m['content']",
        "m['content'] | tojson | length",
        "raise_exception('no') if m['content'] | length < 3 else m['content']",
    ],
)
def test_a_template_that_rewrites_a_content_is_told(written: str) -> None:
    template = f"{{% for m in messages %}}[{{{{ m['role'] }}}}] {{{{ {written} }}}}\n{{% endfor %}}"
    prompt = encoded(template, [{"role": "user", "content": "<think>Rome?</think>Paris"}])

    assert refusal(prompt, turn=0) == (
        "the chat template does not write the content of turn 0 of prompt 0 once and as it is, so its tokens are not "
        "known"
    )


def test_a_tokenizer_without_offsets() -> None:
    TOKENIZER.chat_template = STYLES["gemma"].jinja
    chat = render_chat(TOKENIZER, [{"role": "user", "content": "a"}], "tiny")

    assert refusal(EncodedPrompt(0, chat.text, [1, 2], [], chat), turn=0) == (
        "this model's tokenizer cannot tell where its tokens stand in the text"
    )


@pytest.mark.smollm2
def test_the_real_models_own_template(smollm2_folder: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(smollm2_folder)
    (prompt,) = encode_prompts(tokenizer, [CHAT[1:]], "smollm2-135m")

    def tokens(**asked: Any) -> str:
        return tokenizer.decode([prompt.ids[at] for at in resolve_positions([TurnPosition(**asked)], prompt)])

    assert "SmolLM" in prompt.text  # a system message of the template's own, which is no turn
    assert [tokens(turn=turn) for turn in range(3)] == [message["content"] for message in CHAT[1:]]
    assert tokens(turn=-1, part="after") == "<|im_end|>\n<|im_start|>assistant\n"
    assert tokens(turn=0, part="after", text="<|im_end|>") == "<|im_end|>"
