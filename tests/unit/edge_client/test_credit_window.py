from __future__ import annotations

from edge_client.credit_window import CreditWindow


def test_what_comes_in_time_is_made_up_for() -> None:
    window = CreditWindow(2)
    assert [window.came(late=False) for _ in range(5)] == [1] * 5


def test_what_comes_late_closes_the_window_down_to_one() -> None:
    window = CreditWindow(8)
    # 8 under way; 4, 2 and then 1 may be.
    assert [window.came(late=True) for _ in range(10)] == [0, 0, 0, 0, 0, 0, 0, 1, 1, 1]


def test_it_opens_again_by_one_each_up_to_where_it_began() -> None:
    window = CreditWindow(3)
    granted = [window.came(late=True) for _ in range(3)]
    assert granted == [0, 0, 1]
    assert [window.came(late=False) for _ in range(4)] == [2, 2, 1, 1]
