//! Names at the ends of lines: moved apart where they would overlap, and no further.

/// Moves positions apart so that neighbours are at least `gap` from each other and all lie within `low..=high`, staying
/// as near to where they were as that allows. The order is kept. More labels than fit are squeezed evenly.
pub fn spread(positions: &[f64], gap: f64, low: f64, high: f64) -> Vec<f64> {
    let n = positions.len();
    let gap = if n > 1 { gap.min((high - low) / (n - 1) as f64) } else { gap };
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by(|&a, &b| positions[a].total_cmp(&positions[b]));
    // Groups of labels that touch: each is centred on the mean of where its members want to be.
    let mut groups: Vec<(Vec<usize>, f64)> = Vec::new();
    for index in order {
        groups.push((vec![index], positions[index].clamp(low, high)));
        while let [.., before, last] = &groups[..] {
            let reach = |group: &(Vec<usize>, f64)| 0.5 * gap * group.0.len() as f64;
            if last.1 - before.1 >= reach(last) + reach(before) - 1e-9 {
                break;
            }
            let (last, _) = groups.pop().unwrap_or_default();
            let Some((members, centre)) = groups.last_mut() else { break };
            members.extend(last);
            let half = 0.5 * gap * (members.len() - 1) as f64;
            let mean = members.iter().map(|&member| positions[member]).sum::<f64>() / members.len() as f64;
            *centre = mean.clamp(low + half, (high - half).max(low + half));
        }
    }
    let mut placed = vec![0.0; n];
    for (members, centre) in groups {
        let first = centre - 0.5 * gap * (members.len() - 1) as f64;
        for (index, member) in members.into_iter().enumerate() {
            placed[member] = first + gap * index as f64;
        }
    }
    placed
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::iter::zip;

    fn gaps(mut positions: Vec<f64>) -> f64 {
        positions.sort_by(f64::total_cmp);
        positions.windows(2).map(|pair| pair[1] - pair[0]).fold(f64::INFINITY, f64::min)
    }

    #[test]
    fn labels_with_room_stay() {
        assert_eq!(spread(&[50.0, 10.0, 90.0], 14.0, 0.0, 100.0), [50.0, 10.0, 90.0]);
    }

    #[test]
    fn labels_that_overlap_move_apart_around_their_mean() {
        assert_eq!(spread(&[50.0, 50.0], 14.0, 0.0, 100.0), [43.0, 57.0]);
        assert_eq!(spread(&[0.0, 1.0], 14.0, 0.0, 100.0), [0.0, 14.0]);
    }

    #[test]
    fn a_crowd_keeps_its_order_and_its_bounds() {
        let wanted = [98.0, 97.0, 99.0, 96.0, 20.0, 21.0];
        let placed = spread(&wanted, 14.0, 0.0, 100.0);
        assert!(gaps(placed.clone()) >= 14.0 - 1e-6, "{placed:?}");
        assert!(placed.iter().all(|&at| (0.0..=100.0).contains(&at)));
        for (a, b) in zip(&wanted, &placed) {
            for (c, d) in zip(&wanted, &placed) {
                assert!(a.partial_cmp(c) == b.partial_cmp(d));
            }
        }
    }

    #[test]
    fn too_many_are_squeezed() {
        let placed = spread(&[5.0; 12], 14.0, 0.0, 100.0);
        assert!((gaps(placed) - 100.0 / 11.0).abs() < 1e-9);
    }
}
