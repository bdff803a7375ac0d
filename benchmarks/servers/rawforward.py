"""The limit: the network alone, in the engine that the endpoint uses, in a plain loop over images that are there."""

import json
import os
import statistics
import time

import torch
from sharedmodel import load

from models import engine
from models.bundle import read_bundle

if __name__ == "__main__":
    predictor = load()  # sets the threads
    info, model = read_bundle(os.environ["EAGLERAY_BUNDLE"])
    forward = engine.load(info.engine, model.eval(), torch.device("cpu"))
    side = info.preprocess.resize.size
    rates, wall_rates = dict[int, float](), dict[int, float]()
    for batch in (1, 2, 4, 8):
        images, found, by_clock = torch.rand(batch, 3, side, side), [], []
        forward(images)
        for _ in range(5):
            start, clock, times = time.process_time(), time.monotonic(), max(1, 24 // batch)
            for _ in range(times):
                forward(images)
            found.append(times * batch / (time.process_time() - start))
            by_clock.append(times * batch / (time.monotonic() - clock))
        rates[batch], wall_rates[batch] = statistics.median(found), statistics.median(by_clock)
    print(json.dumps({"engine": info.engine, "rates": rates, "wall_rates": wall_rates}))
