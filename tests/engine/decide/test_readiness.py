from histories import History


def test_x():
    for seed in range(300):
        h = History(seed)
        h.run()
        h.check()
