//! Capitals, digits and a few signs on a grid of 5 x 7 dots, for the numbers in the pictures.

/// Dots of a character, and from one character or line to the next.
pub const SIZE: [i64; 2] = [5, 7];
pub const STEP: [i64; 2] = [6, 9];

const LETTERS: Sheet = Sheet {
    order: "ABCDEFGHIJKLMNOPQRSTUVWXYZ",
    rows: [
        " ###  ####   #### ####  ##### #####  #### #   # #####   ### #   # #     #   # #   #  ###  ####   ###  ####   #### ##### #   # #   # #   # #   # #   # #####",
        "#   # #   # #     #   # #     #     #     #   #   #      #  #  #  #     ## ## ##  # #   # #   # #   # #   # #       #   #   # #   # #   #  # #  #   #     #",
        "#   # #   # #     #   # #     #     #     #   #   #      #  # #   #     # # # # # # #   # #   # #   # #   # #       #   #   # #   # #   #  # #   # #     #",
        "##### ####  #     #   # ####  ####  #  ## #####   #      #  ##    #     # # # #  ## #   # ####  #   # ####   ###    #   #   #  # #  # # #   #     #     #",
        "#   # #   # #     #   # #     #     #   # #   #   #      #  # #   #     #   # #   # #   # #     # # # # #       #   #   #   #  # #  # # #  # #    #    #",
        "#   # #   # #     #   # #     #     #   # #   #   #   #  #  #  #  #     #   # #   # #   # #     #  #  #  #      #   #   #   #   #   ## ##  # #    #   #",
        "#   # ####   #### ####  ##### #      #### #   # #####  ##   #   # ##### #   # #   #  ###  #      ## # #   # ####    #    ###    #   #   # #   #   #   #####",
    ],
};

const SIGNS: Sheet = Sheet {
    order: "0123456789.,-+:/%",
    rows: [
        " ###    #    ###   ###     #  #####  ###  #####  ###   ###                                    # ##  #",
        "#   #  ##   #   # #   #   ##  #     #         # #   # #   #                     #    ##       # ##  #",
        "#  ##   #       #     #  # #  ####  #        #  #   # #   #                     #    ##      #     #",
        "# # #   #      #    ##  #  #      # ####    #    ###   ####             ##### #####         #     #",
        "##  #   #     #       # #####     # #   #   #   #   #     #        ##           #    ##    #     #",
        "#   #   #    #    #   #    #  #   # #   #   #   #   #     #  ##     #           #    ##   #     #  ##",
        " ###   ###  #####  ###     #   ###   ###    #    ###   ###   ##    #                      #     #  ##",
    ],
};

struct Sheet {
    order: &'static str,
    rows: [&'static str; 7],
}

/// Whether the dot at a column and row of a character is set. Characters that the sheets lack are blank.
pub fn dot(character: char, column: i64, row: i64) -> bool {
    let character = character.to_ascii_uppercase();
    let found = [&LETTERS, &SIGNS].into_iter().find_map(|sheet| Some((sheet, sheet.order.find(character)?)));
    let (Ok(column), Ok(row)) = (usize::try_from(column), usize::try_from(row)) else { return false };
    found.is_some_and(|(sheet, place)| {
        let at = place * STEP[0] as usize + column;
        sheet.rows.get(row).is_some_and(|line| line.as_bytes().get(at) == Some(&b'#'))
    })
}

/// Width and height of a line of text, in dots.
pub fn extent(text: &str) -> [i64; 2] {
    [text.chars().count() as i64 * STEP[0] - 1, SIZE[1]]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_character_of_the_sheets_is_drawn_and_no_two_alike() {
        let picture = |c| (0..SIZE[0] * SIZE[1]).map(|i| dot(c, i % SIZE[0], i / SIZE[0])).collect::<Vec<_>>();
        let all: Vec<char> = [&LETTERS, &SIGNS].iter().flat_map(|sheet| sheet.order.chars()).collect();
        for (i, &c) in all.iter().enumerate() {
            assert!(picture(c).contains(&true), "{c}");
            assert!(all[..i].iter().all(|&other| picture(c) != picture(other)), "{c}");
        }
        for sheet in [&LETTERS, &SIGNS] {
            assert!(sheet.rows.iter().all(|row| row.len() <= sheet.order.len() * STEP[0] as usize));
            let gaps = (1..sheet.order.len()).map(|i| i * STEP[0] as usize - 1);
            assert!(gaps.into_iter().all(|gap| sheet.rows.iter().all(|row| row.as_bytes().get(gap) != Some(&b'#'))));
        }
    }

    #[test]
    fn unknown_characters_and_dots_outside_are_blank() {
        assert!((0..35).all(|i| !dot('~', i % 5, i / 5)));
        assert!(!dot('A', -1, 0) && !dot('A', 0, 7) && !dot('é', 0, 0));
        assert_eq!(dot('a', 1, 0), dot('A', 1, 0));
    }
}
