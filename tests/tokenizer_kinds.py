"""Small tokenizers of the kinds that bases have."""

import json

WORDS = ["answer", "question", "yes", "no", "maybe", "river", "longest", "which", "the", "is"]
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.:,?!<>/_-'"
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ '\n' + m.content + '\n' }}{% endfor %}"
    "{{ '<reply>\n' }}"
)


def merges_of(words, start):
    """Merges that join letters to words from the left, the first one to what starts a word."""
    merges = []
    for word in words:
        done = start
        for letter in word:
            if done and (done, letter) not in merges:
                merges.append((done, letter))
            done += letter
    return merges


def with_merges(vocabulary, merges):
    """The vocabulary with what each merge makes."""
    for one, other in merges:
        vocabulary.setdefault(one + other, len(vocabulary))
    return vocabulary


def fast(core, **special):
    from transformers import PreTrainedTokenizerFast

    made = PreTrainedTokenizerFast(tokenizer_object=core, **special)
    made.chat_template = TEMPLATE
    return made


def byte_level():
    """As GPT-2, Llama 3 and Qwen: bytes, and words that begin with their blank."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = merges_of(WORDS, "Ġ") + merges_of(WORDS, "")
    vocabulary = {token: index for index, token in enumerate(["<end>", *alphabet])}
    core = Tokenizer(models.BPE(with_merges(vocabulary, merges), merges))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    return fast(core, eos_token="<end>")


def sentencepiece_core():
    """As the tokenizer.json of Llama 2: a blank before every text, by a normalizer."""
    from tokenizers import Tokenizer, decoders, models, normalizers, processors

    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *LETTERS]
    merges = [("▁", letter) for letter in LETTERS]
    merges += [pair for pair in merges_of(WORDS, "▁") if pair not in merges]
    vocabulary = with_merges({token: index for index, token in enumerate(tokens)}, merges)
    model = models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    core = Tokenizer(model)
    core.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    core.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return core


def sentencepiece():
    """As Llama 2 and Mistral 7B, with a begin-of-text token."""
    return fast(sentencepiece_core(), unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def read_by_class(folder, made, tokenizer_class, **settings):
    """A tokenizer, saved and read by a class of transformers, which builds its own parts."""
    from transformers import AutoTokenizer

    made.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text())
    config.pop("backend", None)
    path.write_text(json.dumps({**config, "tokenizer_class": tokenizer_class, **settings}))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return AutoTokenizer.from_pretrained(folder)


def metaspace(prepend_scheme):
    """As newer Llama-like tokenizers: a blank before the first word, or before every part."""
    from tokenizers import decoders, pre_tokenizers

    core = sentencepiece_core()
    core.normalizer = None
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend_scheme)
    core.decoder = decoders.Metaspace(prepend_scheme=prepend_scheme)
    return fast(core, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def word_piece():
    """As BERT: lower case, words without blanks, and a token at both ends of a text."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    tokens = ["[UNK]", "[CLS]", "[SEP]", *LETTERS, *(f"##{letter}" for letter in LETTERS), *WORDS]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    core = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    core.normalizer = normalizers.BertNormalizer(lowercase=True)
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.decoder = decoders.WordPiece()
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return fast(core, unk_token="[UNK]", bos_token="[CLS]", eos_token="[SEP]")


def unigram():
    """As T5 and XGLM: the likeliest pieces, and a blank before every text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    pieces = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), ("▁", -3.0)]
    pieces += [(letter, -5.0) for letter in LETTERS]
    pieces += [(f"▁{word}", -4.0) for word in WORDS] + [(word, -4.5) for word in WORDS]
    core = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=False))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    core.decoder = decoders.Metaspace(prepend_scheme="always")
    return fast(core, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


def with_both_ends():
    """Saved for training: a token before every text, and the end of text behind it."""
    from tokenizers import processors

    core = sentencepiece_core()
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return fast(core, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


KINDS = {
    "byte-level": byte_level,
    "SentencePiece, a blank by a normalizer": sentencepiece,
    "Metaspace, first": lambda: metaspace("first"),
    "Metaspace, always": lambda: metaspace("always"),
    "WordPiece": word_piece,
    "Unigram": unigram,
    "begin and end of text": with_both_ends,
}
CLASSES = ("LlamaTokenizer", "GemmaTokenizer")  # of transformers, with parts of their own


def build_kind(name, folder):
    """A tokenizer of `KINDS` or `CLASSES`.

    :param folder: an empty one, for those that are read by a class.
    """
    return KINDS[name]() if name in KINDS else read_by_class(folder, sentencepiece(), name)
