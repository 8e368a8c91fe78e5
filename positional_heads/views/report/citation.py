"""How are the paper and this software cited? The same as in CITATION.cff, where an installed package can read it."""

from importlib.metadata import version

SENTENCE = "Please cite the paper whose measure this is, and this software."
PAPER = """\
@inproceedings{hong2024token,
  title     = {On the token distance modeling ability of higher {RoPE} attention dimension},
  author    = {Hong, Xiangyu and Jiang, Che and Qi, Biqing and Meng, Fandong and Yu, Mo and Zhou, Bowen and Zhou, Jie},
  booktitle = {Findings of the Association for Computational Linguistics: EMNLP 2024},
  year      = {2024},
  note      = {arXiv:2410.08703},
  url       = {https://arxiv.org/abs/2410.08703}
}"""
SOFTWARE = f"""\
@software{{positional_heads,
  title   = {{positional_heads}},
  author  = {{{{The positional_heads developers}}}},
  version = {{{version("positional_heads")}}},
  license = {{MIT}}
}}"""
