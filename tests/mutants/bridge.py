"""Mistakes in bridge/ that a test must catch."""

from tests.mutants.mutant import Mutant

MUTANTS = (
    # Sequences drawn from texts: where they lie, and what is read for them
    Mutant(
        "bridge/drawn_text.py",
        "(1 - (1 - self.random.random()) ** (1 / left))",
        "self.random.random() / left",
        "bridge/test_drawn_text -k every_place",
    ),
    Mutant(
        "bridge/drawn_text.py", "place = piece.stop", "place = piece.start", "bridge/test_drawn_text -k from_a_word"
    ),
    Mutant("bridge/drawn_text.py", "space.end()", "space.start()", "bridge/test_drawn_text -k from_a_word"),
    Mutant(
        "bridge/drawn_text.py",
        "first + number * step",
        "first",
        "bridge/test_drawn_text -k in_proportion",
    ),
    Mutant(
        "bridge/drawn_text.py",
        "self.token_size * 1.1",
        "self.token_size * 11",
        "bridge/test_drawn_text -k large_file",
    ),
    Mutant(
        "bridge/text_sources.py",
        "FIRST_BITS != CONTINUES",
        "FIRST_BITS == CONTINUES",
        "bridge/test_drawn_text -k whole_character",
    ),
    Mutant("bridge/cutting.py", "(-len(every[number]), ", "(0, ", "bridge/test_drawn_text -k hardly_suffices"),
    # What is added to Hugging Face's own modules
    Mutant("bridge/found_hooks.py", "_is_harmless if", "bool if", "bridge/test_plain_capture -k own_modules_is_read"),
    Mutant(
        "bridge/found_hooks.py",
        '(within and "_hf_hook" in kept)',
        "within",
        "bridge/test_plain_capture -k own_modules_is_read",
    ),
    # Answers are run plainly under our own ablations only, and start from residuals of the same ablation
    Mutant(
        "bridge/answer_run.py",
        "lambda hook: isinstance(hook, ReplacedHeads)",
        "lambda hook: callable(hook)",
        "bridge/test_answer_run -k users_acts",
    ),
    Mutant(
        "bridge/head_edits.py", "distances > self.distance", "distances >= self.distance", "bridge/test_sinks -k window"
    ),
    Mutant("bridge/head_edits.py", "distances >= self.sinks", "distances > self.sinks", "bridge/test_sinks -k window"),
    Mutant(
        "bridge/answer_run.py",
        "self.attend.end = stop",
        "self.attend.end = 60",
        "bridge/test_answer_run -k bridges_log",
    ),
    Mutant("bridge/answer_run.py", "end - n_queries, end", "n_queries", "bridge/test_answer_run -k bridges_logits"),
    Mutant(
        "bridge/answer_run.py",
        "for layer in far.editable_layers",
        "for layer in layers_with_attention(model)",
        "bridge/test_answer_run -k bridges_logits",
    ),
    Mutant(
        "bridge/answer_run.py",
        "if start <= position < stop",
        "if start < position < stop",
        "bridge/test_answer_run -k whole",
    ),
    Mutant(
        "bridge/kept_residuals.py",
        "if below < layer)",
        "if below < layer - 1)",
        "bridge/test_answer_run -k order_of_sets",
    ),
    Mutant(
        "bridge/kept_residuals.py",
        "(active_extension(self._model), first, tokens.shape, tokens.cpu().numpy().tobytes())",
        "(active_extension(self._model), first, tokens.shape)",
        "bridge/test_answer_run -k order_of_sets",
    ),
    Mutant(
        "bridge/contribution_hooks.py",
        "contributions.clone() if contributions.requires_grad else contributions",
        "contributions",
        "bridge/test_contribution_hooks -k gradient_of_a_contribution",
    ),
    # Chunks are rotated as the whole run is
    Mutant(
        "bridge/prefill.py",
        "[tokens.shape[1]]):\n        for",
        "[tokens.shape[1] + size]):\n        for",
        "bridge/test_run_lengths -k hugging",
    ),
    Mutant(
        "bridge/rope_scaling/running_pass.py",
        "lengths = self.run_lengths\n",
        "lengths = [99]\n",
        "bridge/test_run_lengths -k hugging",
    ),
    Mutant(
        "bridge/rope_scaling/running_pass.py",
        "self.run_lengths[0] if self.run_lengths",
        "length if self.run_lengths",
        "bridge/test_run_lengths -k put_back",
    ),
    Mutant(
        "bridge/rope_scaling/extension.py",
        "rotary, position, run_length)",
        "rotary, position, length)",
        "bridge/test_run_lengths -k whole_run_under",
    ),
    Mutant("bridge/prefill.py", ">= length or exact", ">= length or not exact", "bridge/test_run_lengths -k state"),
    Mutant(
        "bridge/prefill.py", "max(SHORTEST_CHUNK, min(", "min(SHORTEST_CHUNK, min(", "bridge/test_prefill -k agreed"
    ),
    Mutant("bridge/masks.py", "start - first_key", "start", "bridge/test_prefill"),
    Mutant(
        "bridge/capture.py", "whole[:, start:stop] = part", "whole[:, start - stop :] = part", "bridge/test_prefill"
    ),
    # Every sequence is scored as if alone and first
    Mutant("bridge/run_lengths.py", "name) > module", "name) < module", "bridge/test_run_lengths -k checkpoints_own"),
    Mutant(
        "bridge/run_lengths.py",
        "positions.min()) == 0",
        "positions.min()) > 0",
        "bridge/test_run_lengths -k references",
    ),
    Mutant(
        "bridge/run_lengths.py",
        "zip(tables, positions",
        "zip(rows, positions",
        "bridge/test_run_lengths -k padded",
    ),
    Mutant(
        "bridge/rope_scaling/running_pass.py",
        "self._mask.long().sum",
        "self._mask.long().argmax",
        "bridge/test_run_lengths -k extended_by",
    ),
    # One D in hooks, cache, examples and counts
    Mutant(
        "bridge/layer_vectors.py",
        "(by_head.device) ** 2",
        "(by_head.device) ** 1",
        "laws/test_one_dimension -k every_reading",
    ),
    Mutant(
        "bridge/layer_vectors.py", "else squared[heads]", "else squared[:1]", "laws/test_one_dimension -k each_head"
    ),
    Mutant(
        "bridge/layer_vectors.py",
        "self.divided(contributions, heads)",
        "contributions",
        "laws/test_one_dimension -k every_reading",
    ),
    Mutant(
        "bridge/layer_vectors.py",
        "distance >= nearest, beyond",
        "distance <= nearest, beyond",
        "bridge/rope_scaling/test_self_extend -k really_used",
    ),
    Mutant(
        "bridge/layer_vectors.py",
        "max(plan.min_distance, nearest)",
        "plan.min_distance",
        "bridge/rope_scaling/test_self_extend -k really_used",
    ),
    # Edits, in place and by return value
    Mutant(
        "bridge/contribution_hooks.py",
        "- before",
        "- contributions.sum(-1)",
        "bridge/test_contribution_hooks -k in_place",
    ),
    Mutant(
        "bridge/contribution_hooks.py",
        "dim(dominant.clone())",
        "dim(dominant)",
        "bridge/test_contribution_hooks -k readout",
    ),
    Mutant(
        "bridge/contribution_hooks.py", "))]) * rotary.scale", "))])", "bridge/test_contribution_hooks -k remainder"
    ),
    Mutant("bridge/contribution_hooks.py", "row / rotary.scale", "row", "laws/test_one_dimension -k every_reading"),
    Mutant(
        "bridge/contribution_hooks.py",
        "registry.pop(name, None)",
        "registry.get(name)",
        "bridge/test_contribution_hooks -k given_back",
    ),
    Mutant("bridge/live_hooks.py", "hook_rot_k(key.clone())", "hook_rot_k(key)", "bridge/test_live_hooks -k in_place"),
    Mutant(
        "bridge/live_hooks.py",
        "object.__delattr__, module",
        "object.__dir__, module",
        "bridge/test_live_hooks -k after_an_exception",
    ),
    # Keys come from the cache that the run is given
    Mutant(
        "bridge/rope_scaling/running_pass.py",
        "cached[:, :, :filled]",
        "cached[:, :, -filled:]",
        "bridge/rope_scaling/test_running_pass -k filled_before",
    ),
    Mutant(
        "bridge/rope_scaling/running_pass.py",
        "if not self.run_lengths",
        "if self.run_lengths",
        "bridge/rope_scaling/test_running_pass -k several_ways",
    ),
    Mutant(
        "bridge/rope_scaling/extension.py",
        'rope.extension == "default"]',
        'rope.extension != "default"]',
        "bridge/rope_scaling/test_running_pass -k counted_alike",
    ),
    # ReRoPE rotates far keys by the window and the leak
    Mutant(
        "bridge/rope_scaling/rerope.py",
        "(1 - self.leak) * self.window",
        "(1 - self.leak) * (self.window - 1)",
        "bridge/rope_scaling/test_rerope -k definition",
    ),
    Mutant(
        "bridge/rope_scaling/rerope.py",
        "self.leak * position",
        "1.0 * position",
        "bridge/rope_scaling/test_rerope -k definition",
    ),
    Mutant(
        "bridge/rope_scaling/methods.py",
        '"factor" in inspect',
        '"factor" not in inspect',
        "bridge/rope_scaling/test_rerope -k study",
    ),
    # Ablations go by position and number, and show nothing that is masked
    Mutant("bridge/positions.py", "column, -1).amax(-1", "column, -1).amin(-1", "bridge/test_ablation -k recomputed"),
    Mutant("bridge/positions.py", "mask > mask_limit", "mask < mask_limit", "bridge/test_positions -k caches"),
    Mutant("bridge/positions.py", ".repeat_interleave(", ".repeat(", "bridge/test_positions -k beam"),
    Mutant("bridge/head_edits.py", "(~hidden, 0)", "(hidden, 0)", "bridge/test_positions -k masked_key"),
    Mutant("bridge/ablation.py", "distance, 1)", "distance, -9)", "bridge/test_ablation -k impossible"),
    # What tokens, texts and heads are given
    Mutant(
        "bridge/sequences.py", "dtype == torch.bool", "dtype == torch.uint8", "bridge/test_sequences -k neither_text"
    ),
    Mutant(
        "bridge/tokenizing.py",
        '"split_special_tokens": plain_text',
        '"split_special_tokens": False',
        "bridge/test_sequences -k special",
    ),
    Mutant("bridge/tokenizing.py", "if bos and text", "if bos and not text", "bridge/test_sequences -k second_start"),
    Mutant("bridge/tokenizing.py", "text.removeprefix(BYTE_ORDER_MARK)", "text", "bridge/test_sequences -k byte_order"),
    # Frequencies are the configuration's
    Mutant(
        "bridge/frequency_check.py",
        "differs & ~constant",
        "differs & constant",
        "bridge/test_frequency_check -k wrong_table",
    ),
    Mutant(
        "bridge/frequency_check.py",
        "rotating.diff() < 0",
        "rotating.diff() < 1",
        "bridge/test_frequency_check -k descend",
    ),
    Mutant(
        "bridge/frequency_check.py", "/ right - 1", "/ factor - 1", "bridge/test_frequency_check -k attention_factor"
    ),
    Mutant(
        "bridge/rope_scaling/plain_rope.py", "(kinds[layer])", "(kinds[0])", "bridge/test_frequency_check -k two_kinds"
    ),
    Mutant("bridge/model.py", 'endswith("inv_freq")', 'endswith("inv_freqs")', "bridge/test_frequency_check -k cast"),
    # Loads, or says why not
    Mutant(
        "bridge/checkpoints.py",
        'if "install" in words',
        'if "uninstall" in words',
        "bridge/test_loading -k installs_nothing",
    ),
    Mutant("bridge/configuration.py", 'kind == "su" or', 'kind == "us" or', "bridge/test_loading -k meant"),
    Mutant("bridge/configuration.py", "and not quantized", "and quantized", "bridge/test_loading -k meant"),
    Mutant("bridge/provenance.py", "if not getattr(holder", "if getattr(holder", "bridge/test_loading -k disk"),
    Mutant(
        "bridge/provenance.py", "if not hasattr(tensor,", "if hasattr(tensor,", "bridge/test_quantized -k fingerprint"
    ),
    Mutant("bridge/provenance.py", ".is_meta and name", ".is_cpu and name", "bridge/test_devices -k whole_model"),
    Mutant("bridge/provenance.py", "sorted(factors.items())", "sorted(factors)", "bridge/test_adapters -k fingerprint"),
    Mutant("bridge/adapters.py", "sorted(wanted - stored)", "sorted(wanted & stored)", "bridge/test_adapters -k zeros"),
    Mutant(
        "bridge/loaded_models.py", "if not error <=", "if not error >=", "bridge/test_loaded_models -k as_its_folder"
    ),
    Mutant("bridge/loading.py", "merge=not quantized", "merge=quantized", "bridge/test_adapters -k merged"),
    Mutant("bridge/loading.py", "dtype or own or", "dtype or", "bridge/test_quantized -k precision"),
    Mutant(
        "bridge/model.py",
        "parameter.is_meta and",
        "not parameter.is_meta and",
        "bridge/test_loading -k never_loaded",
    ),
    # Layers of every family, proven against the model's own scores
    Mutant(
        "bridge/attention_interface.py",
        "for sense in (1, -1)",
        "for sense in (1, 1)",
        "bridge/test_families -k left_to",
    ),
    Mutant("bridge/attention_interface.py", "-query.shape[2] :", ": query.shape[2]", "bridge/test_families -k llama4"),
    Mutant("bridge/attention_interface.py", "scores + mask[", "scores + 0 * mask[", "bridge/test_families -k chunked"),
    Mutant(
        "bridge/attention_interface.py",
        "callback(setattr, config",
        "callback(getattr, config",
        "bridge/test_families -k leaves",
    ),
    Mutant("bridge/rotary_layer.py", "self.sense * record", "1 * record", "bridge/test_families -k nanochat"),
    Mutant("bridge/resolve.py", "query.clamp(-clip, clip), key", "query, key", "bridge/test_families -k olmo"),
    Mutant("bridge/resolve.py", "(query, key * multiplier)", "(query, key)", "bridge/test_families -k falcon_h1"),
    Mutant("bridge/rotary_layer.py", "* self.scale", "* 1.0", "bridge/test_resolve"),
    Mutant("bridge/masks.py", "smallest <= limit, ~(largest", "largest <= limit, ~(largest", "bridge/test_masks"),
    Mutant("bridge/masks.py", "~((smallest == 0) & (largest == 0))", "(smallest > 0)", "bridge/test_masks"),
    # Layers on several devices
    Mutant(
        "bridge/rotary_layer.py", "table[positions.to(table.device)]", "table[positions]", "bridge/test_devices -k two"
    ),
    Mutant("bridge/rope_scaling/extension.py", "positions.to(old.device)", "positions", "bridge/test_devices -k two"),
    Mutant("core/correlation.py", ".to(ours.device)", ".to(ours.dtype)", "bridge/test_devices -k workers"),
    Mutant(
        "scoring/counter.py",
        "layers[layer].on(vectors.rot_q.device)",
        "layers[layer]",
        "bridge/test_devices -k resumed",
    ),
    Mutant("cli/common.py", "if device in PLACEMENTS", "if device not in PLACEMENTS", "bridge/test_devices -k spreads"),
    # Values that make no sense, names of methods, runs that were stopped
    Mutant(
        "bridge/rope_scaling/hugging_face.py",
        "not least < most",
        "not least > 0",
        "bridge/rope_scaling/test_methods -k not_take",
    ),
    # Plain runs show what the bridge does, or are not read
    Mutant("bridge/plain_run.py", "if own is not child:", "if own is child:", "bridge/test_plain_run -k last_bit"),
    Mutant("bridge/plain_run.py", "dict(child._modules)", "child._modules", "bridge/test_plain_run -k last_bit"),
    Mutant(
        "bridge/plain_run.py",
        "id(found.module) in allowed or",
        "bool(allowed) or",
        "bridge/test_plain_run -k takes_care",
    ),
    Mutant(
        "bridge/plain_run.py", "if all_are(point, kind)", "if callable(kind)", "bridge/test_plain_run -k takes_care"
    ),
    # Extensions of cos and sin act in plain runs, and nobody else's hooks on them
    Mutant(
        "bridge/replayed_hooks.py",
        'TABLES = ("hook_cos", "hook_sin")',
        'TABLES = ("hook_sin", "hook_cos")',
        "bridge/rope_scaling/test_plain_extensions -k every_method",
    ),
    Mutant(
        "bridge/rope_scaling/extension.py",
        "return id(hook) in self._hooks",
        "return bool(self._hooks)",
        "bridge/rope_scaling/test_plain_extensions -k users",
    ),
    Mutant(
        "bridge/rope_scaling/extension.py",
        "and self._own_follows_length)",
        "and False)",
        "bridge/rope_scaling/test_plain_extensions -k other_lengths",
    ),
    Mutant(
        "bridge/rope_scaling/self_extend.py",
        "if self.window >= training_length:",
        "if False:",
        "bridge/rope_scaling/test_self_extend -k reach",
    ),
    Mutant(
        "bridge/replayed_hooks.py",
        "if any(point is not None",
        "if all(point is None",
        "bridge/rope_scaling/test_plain_extensions -k other_families",
    ),
    Mutant(
        "bridge/rope_scaling/extension.py",
        "return self._table(layer, length)",
        "return self._table(layer, 1)",
        "bridge/rope_scaling/test_plain_extensions -k hugging_faces_extended",
    ),
    Mutant(
        "bridge/plain_run.py",
        '"sinks", None) is not None',
        '"sinks", None) is None',
        "bridge/test_plain_run -k kernels",
    ),
    Mutant(
        "bridge/attention_interface.py",
        "_attending.get(module, usual)",
        "usual",
        "bridge/test_plain_run -k that_is_given",
    ),
    # Extensions that rewrite scores attend in plain runs
    Mutant(
        "bridge/rope_scaling/rewriting.py",
        "visible = None if mask is None else shown_entries(mask)[..., :n_keys]",
        "visible = None",
        "bridge/test_answer_run -k other_families",
    ),
    Mutant(
        "bridge/rope_scaling/rewriting.py",
        "own = key[:, :, -query.shape[2] :]",
        "own = key[:, :, : query.shape[2]]",
        "bridge/test_answer_run -k act_as_on",
    ),
    Mutant(
        "bridge/plain_run.py",
        "return owns(hook) or",
        "return True or",
        "bridge/test_plain_run -k other_states",
    ),
    Mutant(
        "bridge/answer_run.py",
        "range(length)[-PROBE:]",
        "range(length)[:PROBE]",
        "bridge/test_answer_run -k left_to_the_bridge",
    ),
    Mutant(
        "bridge/answer_run.py",
        "if extension is None or not extension.owns(handle.user_hook)",
        "if True",
        "bridge/test_answer_run -k act_as_on",
    ),
    Mutant("bridge/plain_capture.py", "* vectors.rotary.scale", "* 1", "bridge/test_plain_capture -k hooks_show"),
    Mutant(
        "bridge/plain_capture.py",
        "distance >= vectors.window",
        "distance > vectors.window",
        "bridge/test_plain_capture -k hooks_show",
    ),
    Mutant("bridge/plain_capture.py", "(key_pos < start)", "(key_pos < 0)", "bridge/test_plain_capture -k hooks_show"),
    Mutant(
        "bridge/plain_capture.py",
        "attended.output[row, query_pos]",
        "attended.output[0, query_pos]",
        "bridge/test_plain_capture -k hooks_show",
    ),
    Mutant("bridge/plain_capture.py", "if not left and", "if", "bridge/test_plain_capture -k hooks_show"),
    Mutant(
        "bridge/plain_capture.py",
        "self._table is not table or",
        "self._table is None or",
        "bridge/test_families -k gemma4",
    ),
    Mutant(
        "bridge/plain_capture.py",
        "if refusal is None and wrong:",
        "if wrong is None:",
        "bridge/test_plain_capture -k only",
    ),
    Mutant(
        "bridge/masks.py", "triu_(first - window + 1)", "triu_(first - window)", "bridge/test_plain_capture -k single"
    ),
    Mutant(
        "bridge/masks.py",
        "expected[:, :start] = False",
        "expected[:, :start] = True",
        "bridge/test_plain_capture -k single",
    ),
    Mutant(
        "bridge/masks.py",
        "if shared and (start, stop) in",
        "if (start, stop) in",
        "bridge/test_plain_capture -k single",
    ),
    Mutant("bridge/masks.py", "if not plain or", "if", "bridge/test_plain_capture -k other_masks"),
    Mutant("scoring/batches.py", "rotary) is not None:", "rotary) is None:", "bridge/test_plain_capture -k long_runs"),
    # What transformers drops of a GGUF file, and what is kept of one
    Mutant("bridge/gguf_attention.py", "low, high = rope", "high, low = rope", "bridge/test_gguf -k rotation"),
    Mutant("bridge/gguf_attention.py", "if turned not in read:", "if not read:", "bridge/test_gguf -k drop"),
    Mutant(
        "bridge/gguf_attention.py",
        "config.rope_parameters = {**more, **scaling, **plain}",
        "config.rope_parameters = {**scaling, **more, **plain}",
        "bridge/test_gguf -k rotation",
    ),
    Mutant(
        "bridge/gguf.py",
        "if not least <= stored <= max(least, most):",
        "if stored < least:",
        "bridge/test_gguf -k drop",
    ),
    Mutant(
        "bridge/kept_models.py",
        "if file_hash(folder / name) != sha256:",
        "if not sha256:",
        "bridge/test_gguf -k damaged",
    ),
    Mutant(
        "bridge/kept_models.py",
        "if (folder / name).stat().st_size != size:",
        "if not size:",
        "bridge/test_gguf -k damaged",
    ),
    Mutant("bridge/gguf_header.py", "if kind not in WHOLE]", "if kind]", "bridge/test_gguf -k blocks"),
    # Adapters of other models, and names of files for texts
    Mutant("bridge/adapters.py", '"B": (0,', '"B": (1,', "bridge/test_adapters -k pefts_own"),
    Mutant("bridge/adapters.py", "if not {_last", "if {_last", "bridge/test_adapters -k another_base"),
    Mutant(
        "bridge/adapters.py", "if not stated or not source", "if not source", "bridge/test_adapters -k another_base"
    ),
    Mutant("bridge/tokenizing.py", "or FILE_NAME", "and FILE_NAME", "bridge/test_drawn_text -k name_of_a_file"),
    # Pairs that are moved, and hooks in their order
    Mutant(
        "bridge/rope_scaling/moved_pairs.py",
        "source[pairs], factor[pairs] = source[there], factor[there]",
        "source[pairs] = source[there]",
        "bridge/rope_scaling/test_manipulated_pairs -k inner_block",
    ),
    Mutant(
        "bridge/rope_scaling/moved_pairs.py",
        "* first\n",
        "* 1\n",
        "bridge/rope_scaling/test_manipulated_pairs -k yarn",
    ),
    Mutant(
        "bridge/rope_scaling/moved_pairs.py",
        "there = [n_pairs - 1 - pair for",
        "there = [pair for",
        "bridge/rope_scaling/test_manipulated_pairs -k turns_so",
    ),
    Mutant(
        "bridge/rotary_layer.py",
        "first = head // group * group",
        "first = head",
        "bridge/rope_scaling/test_manipulated_pairs -k together",
    ),
    Mutant(
        "bridge/rope_scaling/extension.py",
        "last=not str(point.name).endswith(SCORES)",
        "last=True",
        "bridge/rope_scaling/test_manipulated_pairs -k either_order",
    ),
    Mutant(
        "bridge/rope_scaling/extension.py",
        "last=not str(point.name).endswith(SCORES)",
        "last=False",
        "bridge/rope_scaling/test_manipulated_pairs -k patched",
    ),
    Mutant(
        "bridge/rope_scaling/running_pass.py",
        "torch.cat([earlier, rot_k.to(earlier.dtype)], dim=1)",
        "torch.cat([rot_k.to(earlier.dtype), earlier], dim=1)",
        "bridge/rope_scaling/test_running_pass -k drops_keys",
    ),
    # Pairs that keep their rotation
    Mutant(
        "bridge/rope_scaling/kept_pairs.py",
        "phase[:1] if self",
        "torch.ones_like(phase[:1]) if self",
        "bridge/rope_scaling/test_kept_pairs -k logits",
    ),
    Mutant(
        "bridge/rope_scaling/kept_pairs.py",
        "rotary.n_heads // len(rows), dim=0",
        "1, dim=0",
        "bridge/rope_scaling/test_kept_pairs -k logits",
    ),
    Mutant(
        "bridge/layer_vectors.py",
        "if bool((sizes == 0).any())",
        "if False",
        "bridge/rope_scaling/test_kept_pairs -k scored",
    ),
    Mutant(
        "bridge/rope_scaling/extended_rope.py",
        "if method.applies(rotary)",
        "if True",
        "bridge/rope_scaling/test_kept_pairs -k left_alone",
    ),
    Mutant(
        "bridge/attention_scores.py",
        "(column <= own - shown)",
        "(column < own - shown)",
        "scoring/test_distance_profile -k own_attention",
    ),
)
