"""Fine-tune a transformers model on responses whose prompt changed while they were written.

    python docs/example_dynamic_sft.py MODEL TRAJECTORIES.jsonl OUTPUT_DIR

Each line of the file is one trajectory. `pieces` are token ids; each pass lists the pieces that
its prompt was made of, -1 standing for the response so far. Two prompt states:

    {"trajectory_id": "0", "pieces": [[5, 6], [7], [8]], "response": [1, 2, 3, 4], "passes": [
      {"layout": [0, 1, -1], "states": {"case": "upper"}, "start": 0, "stop": 2},
      {"layout": [0, 2, -1], "states": {"case": "lower"}, "start": 2, "stop": 4}]}
"""

import json
import sys

from dynatok_online.training.trainer import DynamicSFTConfig, DynamicSFTTrainer
from dynatok_online.trajectory import from_row


def main(model: str, file: str, output_dir: str) -> None:
    """Train for three epochs, and save the model."""
    with open(file) as lines:
        trajectories = [from_row(json.loads(line)) for line in lines]
    trainer = DynamicSFTTrainer(
        model=model,
        args=DynamicSFTConfig(
            output_dir=output_dir,
            per_device_train_batch_size=8,  # trajectories; they are packed into rows
            max_row_tokens=8192,
            num_train_epochs=3,
            logging_steps=1,
        ),
        train_dataset=trajectories,
    )
    trainer.train()
    trainer.save_model()


if __name__ == "__main__":
    main(*sys.argv[1:])
