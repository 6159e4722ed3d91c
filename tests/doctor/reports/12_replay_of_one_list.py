"""https://github.com/Itomigna2/Muesli-lunarlander/issues/1

Episodes were put into the replay buffer as the lists that collect them, and these lists were cleared for the next.
So each entry of the buffer is the same, latest episode, and the agent only ever learns from that one.
Share of greedy episodes that reach the goal, seed 0: 0.865 healthy, 0.170 with the bug.
"""

import copy
from collections import deque
from contextlib import nullcontext

import torch
from torch import nn

SIDE, MOVES = 6, torch.tensor([[0, 1], [0, -1], [1, 0], [-1, 0]])


def observe(place, goal):
    return torch.cat([nn.functional.one_hot(part, SIDE) for part in (*place, *goal)]).float()


def move(place, goal, action):
    place = (place + MOVES[action]).clamp(0, SIDE - 1)
    return place, bool((place == goal).all())


def success(model):
    """Return the share of 200 greedy episodes that reach the goal within 12 steps."""
    places, goals = torch.randint(SIDE, (2, 200, 2), generator=torch.Generator().manual_seed(9))
    reached = torch.zeros(200, dtype=torch.bool)
    for _ in range(12):
        batch = torch.stack([observe(place, goal) for place, goal in zip(places, goals, strict=True)])
        places = (places + MOVES[model(batch).argmax(1)]).clamp(0, SIDE - 1)
        reached |= (places == goals).all(1)
    return reached.float().mean().item()


def main(has_bug, watch, check):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4 * SIDE, 96), nn.ReLU(), nn.Linear(96, 4))
    target = copy.deepcopy(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    state_replay, action_replay, reward_replay = (deque(maxlen=300) for _ in range(3))
    states, actions, rewards = [], [], []
    with watch(model, optimizer=optimizer):
        for episode in range(500):
            if has_bug:
                for collected in (states, actions, rewards):
                    collected.clear()
            else:
                states, actions, rewards = [], [], []
            place, goal = torch.randint(SIDE, (2, 2))
            states.append(observe(place, goal))
            for _ in range(16):
                greedy = torch.rand(()) > max(0.1, 1 - episode / 250)
                with torch.no_grad():
                    action = int(model(states[-1]).argmax()) if greedy else int(torch.randint(4, ()))
                place, done = move(place, goal, action)
                states.append(observe(place, goal))
                actions.append(action)
                rewards.append(float(done))
                if done:
                    break
            state_replay.append(states)
            action_replay.append(actions)
            reward_replay.append(rewards)
            for _ in range(4):
                chosen = torch.randint(len(state_replay), (8,)).tolist()
                before = torch.stack([state for index in chosen for state in state_replay[index][:-1]])
                after = torch.stack([state for index in chosen for state in state_replay[index][1:]])
                taken = torch.tensor([action for index in chosen for action in action_replay[index]])
                gained = torch.tensor([reward for index in chosen for reward in reward_replay[index]])
                with torch.no_grad():
                    wanted = gained + 0.9 * target(after).max(1).values * (1 - gained)
                predicted = model(before).gather(1, taken[:, None])[:, 0]
                loss = nn.functional.smooth_l1_loss(predicted, wanted)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            if episode % 10 == 0:
                target.load_state_dict(model.state_dict())
    with torch.no_grad():
        return success(model)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for has_bug in (False, True):
        score = main(has_bug, lambda *_, **__: nullcontext(), lambda *_, **__: None)
        print("bug" if has_bug else "healthy", round(score, 3))
