"""Tokenize stage: Arrow string array in, `TokenLists` out. Ids equal those of `tokenizers`."""

from typing import TYPE_CHECKING

from lance_prep.process import lazy_exports

if TYPE_CHECKING:
    from lance_prep.tokenizer.chat import ChatTemplate, encode_as_text
    from lance_prep.tokenizer.chat_sandbox import chat_environment
    from lance_prep.tokenizer.check import BackendDisagrees, CheckedEncoder
    from lance_prep.tokenizer.encoders import (
        Encoder,
        ExactEncoder,
        ReferenceEncoder,
        SpecialTokenGuard,
        chosen_backend,
        make_encoder,
    )
    from lance_prep.tokenizer.function import (
        Dtype,
        FunctionEncoder,
        FunctionSpec,
        TextFunction,
        TextRefused,
        check_function,
        function_spec,
    )
    from lance_prep.tokenizer.ids import IdsEncoder, ids_spec
    from lance_prep.tokenizer.lists import TokenLists, followed_by, real_ids
    from lance_prep.tokenizer.pieces import Piece, text_pieces
    from lance_prep.tokenizer.spec import TokenizerSpec, load_reference, load_tokenizer
    from lance_prep.tokenizer.unicode import byte_names


__getattr__, __dir__, __all__ = lazy_exports(__name__)
