"""Files of other tools, written from a profile and read back: ranks, statistics, patterns, plans and plain tables.

| tool | file | write | read |
| --- | --- | --- | --- |
| MHA2MLA | ranks of pairs, .pth | `write_mha2mla_ranks` | `read_mha2mla_ranks` |
| FASA | agreement of pairs, .json | `write_fasa_agreement` | `read_fasa_agreement` |
| TriAttention | query centres, .pt | `write_triattention` | `read_triattention` |
| DuoAttention | full_attention_heads.tsv, config.json | `write_duo_attention` | `read_duo_attention` |
| kvpress | streaming heads, .json | `write_kvpress` | `read_kvpress` |
| any | heads and pairs, .csv and .json | `write_tables` | |

`published` has some files of MHA2MLA and DuoAttention. No reader runs anything that is in a file, and no writer
replaces a file of another kind.
"""

from positional_heads.results.formats.duo_attention import HeadPattern, read_duo_attention, write_duo_attention
from positional_heads.results.formats.fasa import read_fasa_agreement, write_fasa_agreement
from positional_heads.results.formats.kvpress import read_kvpress, write_kvpress
from positional_heads.results.formats.mha2mla import (
    RankComparison,
    compare_mha2mla,
    mha2mla_ranks,
    read_mha2mla_ranks,
    write_mha2mla_ranks,
)
from positional_heads.results.formats.published import PUBLISHED, published
from positional_heads.results.formats.tables import write_tables
from positional_heads.results.formats.triattention import (
    TriAttentionStatistics,
    read_triattention,
    write_triattention,
)

__all__ = [
    "PUBLISHED",
    "HeadPattern",
    "RankComparison",
    "TriAttentionStatistics",
    "compare_mha2mla",
    "mha2mla_ranks",
    "published",
    "read_duo_attention",
    "read_fasa_agreement",
    "read_kvpress",
    "read_mha2mla_ranks",
    "read_triattention",
    "write_duo_attention",
    "write_fasa_agreement",
    "write_kvpress",
    "write_mha2mla_ranks",
    "write_tables",
    "write_triattention",
]
