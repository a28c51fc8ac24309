"""What the person did in a chunk of recorded play: `python examples/look_at_data.py shards/val [CHUNK]`."""

import sys

import p2p


def main(place: str, index: int = 0) -> None:
    config = p2p.PolicyConfig()  # the released models': 200 steps of 192 x 192 pixels
    dataset = p2p.GameplayDataset.for_policy(config, place)
    chunk = dataset[index]
    print(f"{place}: {len(dataset)} chunks; chunk {index} is {chunk['recording']} from frame {chunk['start']}")
    before = None
    for step in range(config.num_timesteps):
        action = config.action_space.decode(chunk["actions"][step].numpy(), mouse_sampling="mean")
        if chunk["user_mask"][step] and chunk["valid_mask"][step] and action != before:
            brightness = float(chunk["frames"][step].float().mean())
            held = ", ".join((*action.keys, *(f"button {button}" for button in action.buttons))) or "nothing"
            print(f"step {step}: {held}; mouse {action.dx:+} {action.dy:+}; brightness {brightness:.0f}")
        before = action


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
