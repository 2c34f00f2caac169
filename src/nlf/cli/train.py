"""`nlf train`: load what the options name, and train."""

from functools import partial

from nlf import config
from nlf.data.prompts import load_prompts
from nlf.models.policy import load_model, lora_config
from nlf.training.config import ALTConfig
from nlf.training.trainer import ALTTrainer


def train_from_config(
    args: ALTConfig,
    model_options: config.ModelOptions,
    data_options: config.DataOptions,
    resume: str | bool | None = None,
) -> ALTTrainer:
    """`nlf train`: load what the options name, train, and leave the tagged model at the run's root."""
    load = partial(
        load_model,
        dtype=model_options.dtype,
        attn_implementation=model_options.attn_implementation,
        trust_remote_code=model_options.trust_remote_code,
    )
    prompts = partial(load_prompts, column=data_options.dataset_prompt_column)
    train_rows = prompts(data_options.dataset, split=data_options.dataset_train_split, limit=data_options.max_prompts)
    eval_rows = data_options.eval_dataset and prompts(
        data_options.eval_dataset, split=data_options.dataset_test_split, limit=data_options.max_eval_prompts
    )
    model, tokenizer = load(model_options.model_name_or_path, revision=model_options.model_revision)
    reference = model_options.ref_model_name_or_path and load(model_options.ref_model_name_or_path)[0]
    trainer = ALTTrainer(
        model,
        args=args,
        train_dataset=train_rows,
        eval_dataset=eval_rows,
        processing_class=tokenizer,
        peft_config=lora_config(model_options) if model_options.use_peft else None,
        reference_model=reference or None,
        disable_dropout=model_options.disable_dropout,
        max_prompt_length=data_options.max_prompt_length,
    )
    trainer.options = vars(model_options) | vars(data_options)
    trainer.train(resume_from_checkpoint=resume)
    return trainer
