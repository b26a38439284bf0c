r"""What a model is shown of a question: one form for pretraining text, SFT rows, worked examples and sampling.

    prompt = encode_prompt("Tom has 3 pears and buys 2. How many?", tokenizer)
    answer = encode_solution("3 + 2 = 5. The answer is \\boxed{5}.", tokenizer)      # ends in eos

Prompt and solution are always encoded apart. A model that is sampled from continues exactly the tokens of the prompt,
so no token may span the two in training either.
"""

from cli import UserError

INSTRUCTION = "Let's think step by step and output the final answer within \\boxed{}."

# The authors' prompts with worked examples: form → (last line of an example, instruction after the last "Answer:"). The
# first is GSM8K's own form, the second that of MATH and OpenMathInstruct-2.
PROMPT_FORMS = {
    "question_answer": ("#### {}", 'Let\'s think step by step and output the final answer after "####".'),
    "question_answer_boxed": ("\\boxed{{{}}}", INSTRUCTION),
}


def format_prompt(question: str) -> str:
    """The prompt of `question`. A solution follows directly after it."""
    return f"{question} {INSTRUCTION}\n"


def encode_prompt(question: str, tokenizer) -> list[int]:
    """Token ids of the zero-shot prompt."""
    return tokenizer.encode(format_prompt(question))


def encode_solution(solution: str, tokenizer, cut: int = 0) -> list[int]:
    """Token ids of a solution and one eos, to follow its prompt. `cut`: at most so many tokens (0: all); a solution
    that is cut has no eos."""
    return [*tokenizer.encode(solution), tokenizer.eos][: cut or None]


def few_shot_prompt(examples: list[dict], question: str, tokenizer, form: str = "plain") -> list[int]:
    """Token ids of worked examples and then the prompt of `question`.

    form "plain": each example is its prompt, its first solution and eos. A form of PROMPT_FORMS: the authors' plain
    text without eos. Without examples the prompt is always plain. "none": `question` as it is, a text to be
    continued."""
    if form == "none":
        return tokenizer.encode(question)
    if form != "plain" and examples:
        last_line, instruction = PROMPT_FORMS[form]
        text = ""
        for example in examples:
            reasoning, _, answer = example["worked"].rpartition("#### ")
            text += f"Question: {example['question']}\nAnswer: {reasoning}{last_line.format(answer)}\n"
        return tokenizer.encode(f"{text}Question: {question}\nAnswer: {instruction}\n")
    ids = []
    for example in examples:
        ids += encode_prompt(example["question"], tokenizer) + encode_solution(example["solutions"][0], tokenizer)
    return ids + encode_prompt(question, tokenizer)


def fitting(
    questions: list[dict], tokenizer, context: int, new_tokens: int
) -> tuple[list[tuple[dict, list[int]]], list[str]]:
    """([(question, zero-shot prompt)] of the questions that leave room for `new_tokens` in `context` tokens, ids of the
    others). UserError if none does."""
    pairs = [(q, encode_prompt(q["question"], tokenizer)) for q in questions]
    kept = [(q, prompt) for q, prompt in pairs if len(prompt) + new_tokens <= context]
    if not kept:
        raise UserError(
            f"no question fits a context of {context} with {new_tokens} new tokens (the shortest prompt has "
            f"{min((len(prompt) for _, prompt in pairs), default=0)}): lower --max_new_tokens or use a longer context"
        )
    return kept, [q["id"] for q, prompt in pairs if len(prompt) + new_tokens > context]


def left_out(ids: list[str], total: int, context: int, new_tokens: int) -> str:
    """The line that tells a user which of `total` questions do not fit."""
    return (
        f"{len(ids)} of {total} questions leave no room for {new_tokens} new tokens in a context of {context}: left out: "
        f"{listed(ids)}"
    )


def listed(ids: list[str]) -> str:
    """ "a, b, c and 5 more": the first 8 ids, and the number of the others."""
    return ", ".join(map(str, ids[:8])) + (f" and {len(ids) - 8} more" if len(ids) > 8 else "")
